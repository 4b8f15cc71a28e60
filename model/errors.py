"""Every error that a user can meet, in one tree.

DdaebmError
├── ConfigError               a configuration that cannot be built
├── InputError                an argument of the Python API that cannot be used
├── DataError                 training or scoring data that cannot be used
├── ImageError                one image that cannot be read
│   ├── ImageFormatError          not an image, truncated, or a mode without a meaning here
│   └── ImageTooLargeError        more pixels than the budget allows
├── BundleError               a bundle folder that cannot be served
│   ├── BundleMissingFileError
│   ├── BundleHashError           a file is not the one the manifest names
│   ├── BundlePathError           the manifest names a file outside its folder
│   └── BundleVersionError        written by a later release
├── CheckpointError           a run folder that cannot be resumed or exported
├── ParityError               an exported graph that does not compute what the network computes
└── NonFiniteLossError        training diverged
"""


class DdaebmError(Exception):
    """Base class; its message is one line that says what to do."""


class ConfigError(DdaebmError, ValueError):
    pass


class InputError(DdaebmError, ValueError):
    pass


class DataError(DdaebmError):
    pass


class ImageError(DdaebmError):
    pass


class ImageFormatError(ImageError):
    pass


class ImageTooLargeError(ImageError):
    pass


class BundleError(DdaebmError):
    pass


class BundleMissingFileError(BundleError):
    pass


class BundleHashError(BundleError):
    pass


class BundlePathError(BundleError):
    pass


class BundleVersionError(BundleError):
    pass


class CheckpointError(DdaebmError):
    pass


class ParityError(DdaebmError):
    pass


class NonFiniteLossError(DdaebmError):
    pass
