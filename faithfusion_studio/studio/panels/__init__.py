"""The tabs and the timeline: each builds its widgets, turns events into commands, shows the state."""
