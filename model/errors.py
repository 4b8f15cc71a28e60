"""All errors that users can meet.

DdaebmError
├── ConfigError               an invalid configuration
├── InputError                an invalid argument of the Python API
├── DataError                 unusable training or scoring data
├── ImageError                an unreadable image
│   ├── ImageFormatError          not an image, truncated, or an unsupported mode
│   └── ImageTooLargeError        more pixels than the limit
├── BundleError               an unusable bundle
│   ├── BundleMissingFileError    a file or the whole folder is missing
│   ├── BundleHashError           a file does not have the hash in the manifest
│   ├── BundlePathError           the manifest names a path outside its folder
│   └── BundleVersionError        another format version
├── CheckpointError           an unusable run folder
├── ParityError               an exported graph and its network disagree
└── NonFiniteLossError        training diverged
"""


class DdaebmError(Exception):
    """Base class. The message is one line and says what to do."""


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
