"""What a user's mistake raises. The only exceptions, beside the system's own OSError, that a command shows as one line.

Everything else that is raised, out of JAX, an einsum or a pytree, is ours to mend and keeps its traceback.
"""


class UserError(ValueError):
    """A mistake in a config, flag, file, checkpoint or argument: names the field, what it got and what it may be."""

    def _render_traceback_(self) -> list[str]:
        """What IPython shows of it: in a notebook, too, a user's mistake is one line."""
        return [f"error: {self}"]


class Diverged(FloatingPointError):
    """Training whose numbers are no longer finite: names the stage, the step and what to change."""
