"""Which files hold secrets by their name: never read for a record, and not named in one."""

from __future__ import annotations

import os
import re
from pathlib import PurePath

LOOKS_SECRET = "looks like a secret"
"""What a record says of such files, in place of their names."""

_CODE = (".py", ".pyi", ".pyc", ".pyx", ".pxd", ".so", ".ipynb")
_FOLDERS = frozenset({".ssh", ".aws", ".azure", ".gnupg", ".kube", "secrets", ".secrets"})
_WORDS = r"(?:secrets?|credentials?|passwords?|passwd|api[_-]?keys?|private[_-]?keys?)"
_SOURCE = re.compile(rf"{_WORDS}\.[a-z]+")
_NAME = re.compile(
    rf"""\.env(?:rc|\..*)? | .*\.env | [._]netrc | \.pgpass | \.htpasswd | \.git-credentials
      | \.pypirc | \.npmrc | \.yarnrc(?:\.yml)? | \.dockercfg | \.boto | \.s3cfg | rclone\.conf
      | kubeconfig | kaggle\.json | id_(?:rsa|dsa|ecdsa|ed25519)(?:_sk)?
      | .*\.(?:pem|key|p12|pfx|p8|pk8|jks|keystore|kdbx|ppk|asc|gpg|ovpn|tfvars)
      | (?:.*[._-])?{_WORDS}(?:\.[a-z0-9]{{1,10}})?
      | \.?(?:[a-z]+[_-])?tokens?(?:\.(?:txt|json|ya?ml|toml|ini))?
      | service[_-]?account.*\.json | client[_-]?secret.*""",
    re.VERBOSE,
)
_TEMPLATES = (".example", ".template", ".sample")


def is_secret_file(path: str | PurePath) -> bool:
    """Whether a file is one of those that usually hold secrets: `.env`, keys, credentials.

    Parameters
    ----------
    path : str or path
        Its name, or its path in a project: folders count that hold nothing but secrets, such as
        `.ssh`. A source file counts only where it has such a name itself (`secrets.py`).
    """
    # Not the parts of a PurePath, which take ten times as long: there may be many files.
    parts = os.fspath(path).lower().split(os.sep)
    *above, name = ["", *(part for part in parts if part not in ("", "."))]
    if name.endswith(_TEMPLATES):
        return False
    if name.endswith(_CODE):
        return _SOURCE.fullmatch(name) is not None
    return _NAME.fullmatch(name) is not None or not _FOLDERS.isdisjoint(above)
