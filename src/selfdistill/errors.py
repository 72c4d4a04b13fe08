"""The two ways in which a command ends early. The message is for the user: it names the thing, the value and the way out."""


class Misuse(ValueError):
    """The user asked for something that cannot be done: exit code 2."""


class Failure(RuntimeError):
    """Something that should have worked did not (disk, network, numbers): exit code 1."""
