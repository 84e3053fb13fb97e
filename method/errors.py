"""The one exception that means: the user can put this right."""

from ..kernels.program_end import refusal


class UserError(Exception):
    """A mistake in what was asked for; its text is one line that says what to do."""


class OutOfReachError(UserError):
    """A sparsity that a method cannot reach on a model: a sweep reports the cell and goes on."""

    def __init__(self, message: str, maximum: float) -> None:
        super().__init__(message)
        self.maximum = maximum
        """The largest block sparsity that the method reaches on that model."""


def mistake(error: BaseException) -> str | None:
    """What the user should do about this error; None for one that is not the user's."""
    return str(error) if isinstance(error, UserError) else refusal(error)
