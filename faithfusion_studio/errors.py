"""The base of every error the project raises on purpose."""


class StudioError(ValueError):
    """One sentence for the user: what was found, what was expected, what to do next."""
