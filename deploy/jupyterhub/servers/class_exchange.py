"""nbgrader's exchange, as far as a class of several Unix users needs it closed more tightly."""

import os
import pwd
import stat
from logging import Logger
from pathlib import Path
from typing import Any

from nbgrader.exchange.default import ExchangeCollect, ExchangeSubmit
from nbgrader.utils import ignore_patterns


class SubmitPrivately(ExchangeSubmit):
    """Leaves a submission open to its student and the instructor only.

    nbgrader leaves it open to everybody, and relies on nobody guessing its name.
    """

    def copy_files(self) -> None:
        super().copy_files()
        # The folder belongs to the instructor's group, because `inbound` passes its group on.
        os.chmod(Path(self.inbound_path, self.assignment_filename), 0o770)


class CollectFromOwner(ExchangeCollect):
    """Takes a submission for the work of the user who owns it, and only plain files of theirs.

    nbgrader believes the name of the folder and merely warns of another owner, so that a student
    could replace another's work. And it follows links with the instructor's rights, so that a
    link to another's work would be handed in as one's own.
    """

    def _path_to_record(self, path: str) -> dict[str, Any]:
        return super()._path_to_record(path) | {"username": owner_of(path)}

    def do_copy(self, src: str, dest: str, log: Logger | None = None) -> None:
        owner = os.lstat(src).st_uid
        room = 1000 * self.coursedir.max_dir_size
        ignored = ignore_patterns(
            exclude=self.coursedir.ignore,
            include=self.coursedir.include,
            max_file_size=self.coursedir.max_file_size,
            log=self.log,
        )
        # Neither `fwalk` nor `read_plain` looks a path up twice: what they have checked, they read.
        for folder, folders, names, descriptor in os.fwalk(src):
            left_out = set(ignored(folder, [*folders, *names]))
            folders[:] = set(folders) - left_out
            target = Path(dest, os.path.relpath(folder, src))
            target.mkdir(parents=True)
            for name in sorted(set(names) - left_out):
                try:
                    content = read_plain(name, descriptor, owner, room)
                except OSError as error:
                    self.log.warning("%s/%s was left out: %s", folder, name, error)
                    continue
                room -= len(content)
                (target / name).write_bytes(content)


def owner_of(path: str) -> str:
    """Name of the user who owns `path` itself, not what it may link to."""
    owner = os.lstat(path).st_uid
    try:
        return pwd.getpwuid(owner).pw_name
    except KeyError:  # the account is gone; its submission must not stop the others'
        return f"user-{owner}"


def read_plain(name: str, folder: int, owner: int, most: int) -> bytes:
    """What the file `name` in the open `folder` holds.

    Raises:
        OSError: if it is no plain file of `owner`, or holds more than `most` bytes.
    """
    # Without waiting: a named pipe would be waited for.
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
    with os.fdopen(os.open(name, flags, dir_fd=folder), "rb") as file:
        facts = os.fstat(file.fileno())
        if not stat.S_ISREG(facts.st_mode) or facts.st_uid != owner:
            raise OSError("it is no plain file of the student's own.")
        content = file.read(most + 1)
    if len(content) > most:
        raise OSError("the submission is larger than nbgrader's max_dir_size.")
    return content
