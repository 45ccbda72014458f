"""Run a command with a temporary PostgreSQL server: `python -m tests.postgres COMMAND …`.

The command finds the server's address in DATABASE_URL. If DATABASE_URL is set already, no server is
started. The server listens on a socket in a temporary folder and ends with the command.
"""

import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import psycopg

from tests.servers import eventually

SETTINGS = ("fsync=off", "max_connections=200", "listen_addresses=")


def binaries() -> Path | None:
    """Return the folder with `initdb` and `postgres`; None if PostgreSQL is not installed."""
    found = [Path(path).parent for path in (shutil.which("initdb"),) if path]
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    for folder in (*found, *versions):
        if (folder / "initdb").exists() and (folder / "postgres").exists():
            return folder
    return None


def main(command: list[str]) -> int:
    if "DATABASE_URL" in os.environ:
        return subprocess.run(command, check=False).returncode
    folder = binaries()
    if folder is None:
        print("PostgreSQL is not installed (Debian: apt-get install postgresql).", file=sys.stderr)
        return 1
    data = Path(tempfile.mkdtemp(prefix="postgres-"))
    # PostgreSQL refuses to run as root.
    user = pwd.getpwnam("postgres" if _exists("postgres") else "nobody")
    as_user = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    owner = as_user if os.geteuid() == 0 else {}
    if owner:
        os.chown(data, user.pw_uid, user.pw_gid)
    try:
        subprocess.run(
            [
                folder / "initdb",
                "-D",
                data / "db",
                "-U",
                "postgres",
                "--no-sync",
                "-E",
                "UTF8",
                "-A",
                "trust",
            ],
            check=True,
            stdout=subprocess.DEVNULL,
            cwd="/",
            **owner,
        )
        options = [part for setting in SETTINGS for part in ("-c", setting)]
        server = subprocess.Popen(
            [folder / "postgres", "-D", data / "db", "-k", data, *options],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            **owner,
        )
        try:
            eventually(lambda: _answers(data))
            url = f"postgres://postgres@/postgres?host={data}"
            environment = {**os.environ, "DATABASE_URL": url}
            return subprocess.run(command, env=environment, check=False).returncode
        finally:
            server.terminate()
            server.wait()
    finally:
        shutil.rmtree(data, ignore_errors=True)


def _answers(folder: Path) -> bool:
    try:
        psycopg.connect(host=str(folder), user="postgres", dbname="postgres").close()
    except psycopg.OperationalError:
        return False
    return True


def _exists(name: str) -> bool:
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
