"""The one exception that means: the user can put this right."""


class UserError(Exception):
    """A mistake in what was asked for; its text is one line that says what to do."""


class OutOfReachError(UserError):
    """A sparsity that a method cannot reach on a model: a sweep reports the cell and goes on."""

    def __init__(self, message: str, maximum: float) -> None:
        super().__init__(message)
        self.maximum = maximum
        """The largest block sparsity that the method reaches on that model."""
