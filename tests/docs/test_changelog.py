"""The changelog's newest version is this one."""

import re
from pathlib import Path

import llmhost

ROOT = Path(__file__).parents[2]
VERSIONS = re.findall(
    r"^## (?!Unreleased)(\S+)", (ROOT / "docs" / "changelog.md").read_text(), flags=re.MULTILINE
)


def test_the_newest_version_is_the_one_that_is_here():
    assert VERSIONS[0] == llmhost.__version__
    assert f'version = "{llmhost.__version__}"' in (ROOT / "pyproject.toml").read_text()


def test_newer_versions_come_first():
    numbers = [tuple(map(int, version.split("."))) for version in VERSIONS]

    assert numbers == sorted(set(numbers), reverse=True)
