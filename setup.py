"""Packaging for neuronlens; every field comes from settings.ini."""
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
parser = ConfigParser(delimiters=["="], interpolation=None)
parser.read(here / "settings.ini", encoding="utf-8")
cfg = parser["DEFAULT"]

setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=(here / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author=cfg["author"],
    author_email=cfg["author_email"],
    keywords=cfg["keywords"],
    license="Apache-2.0",
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Natural Language :: English",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
    url=cfg["git_url"],
    python_requires=">=" + cfg["min_python"],
    packages=find_packages(include=["neuronlens", "neuronlens.*"]),
    package_data={"neuronlens": ["py.typed", "__init__.pyi", "refusals.toml", "example.toml", "help.json", "views/*.js", "views/*.css"]},
    install_requires=cfg["requirements"].split(),
    extras_require={extra: cfg[f"{extra}_requirements"].split()
                    for extra in ("demo", "lm", "dev", "bench", "ray", "serve", "evals", "linguistics") if f"{extra}_requirements" in cfg},
    entry_points={
        "console_scripts": ["neuronlens=neuronlens.studies.cli:main"],
        "nbdev": ["neuronlens=neuronlens._modidx:d"],
    },
)
