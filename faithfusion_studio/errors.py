"""The base of every error the project raises on purpose."""


class StudioError(ValueError):
    """One sentence for the user: what was found, what was expected, what to do next."""


def reason_of(error: BaseException, limit: int = 160) -> str:
    """Why something of others failed, in one line: what the system says, else the first line of the message.

    Args:
        error: Of a library or the system; its message may be empty, in which case its kind is the reason.
        limit: Characters at most.
    """
    lines = str(getattr(error, "strerror", None) or error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:limit]
