"""The exceptions that a user of the program sees.

Each message names the place (file and record number, or config key), the value that was found there, and what to do.
Entry points print them without a traceback and exit with status 2. Contradictions inside the program are asserts.
"""


class InstructLitError(Exception):
    """Something that the user can mend; the message says where, what was found, and what is allowed."""


class ConfigError(InstructLitError):
    """A configuration key is unknown, has the wrong type, or contradicts another one."""


class DataError(InstructLitError):
    """A data file or a record in it cannot be used."""


class TemplateError(InstructLitError):
    """A prompt template cannot be rendered or has no place for the response."""


class DownloadError(InstructLitError):
    """A file could not be fetched, or what came is not what was expected."""


class TrialPruned(Exception):
    """A trial of a sweep is hopeless and was ended; not a failure."""


class CheckpointError(InstructLitError):
    """Weights, a bundle or a training checkpoint are missing, damaged, or belong to something else."""


class JudgeError(InstructLitError):
    """A judge cannot be asked, or its answers cannot be kept."""


class TrainingError(InstructLitError):
    """Training cannot go on: the loss is no number, or the device has no memory left."""
