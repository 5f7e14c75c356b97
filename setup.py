"Everything that describes the package stands in settings.ini; this file only hands it to setuptools."

import re
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
config = ConfigParser(delimiters=["="], interpolation=None)
config.read(here / "settings.ini", encoding="utf-8")
cfg = config["DEFAULT"]
minor_versions = range(int(cfg["min_python"].split(".")[1]), 14)


def for_pypi(readme):
    "README.md with links and pictures that lead somewhere from PyPI too: pages to the site, files to the source of this version."
    site, source = f"{cfg['doc_host']}{cfg['doc_baseurl']}", f"{cfg['git_url']}/blob/v{cfg['version']}"
    raw = source.replace("//github.com/", "//raw.githubusercontent.com/").replace("/blob/", "/")
    readme = re.sub(r"\]\(nbs/(tutorials/|reference/)?(?:\d\d_)?(\w+)\.(?:ipynb|qmd)", rf"]({site}/\1\2.html", readme)
    readme = re.sub(r"(!\[[^\]]*\]\()(?!\w+:)", rf"\1{raw}/", readme)
    return re.sub(r"\]\((?!\w+:|#)", f"]({source}/", readme)


setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=for_pypi((here / "README.md").read_text(encoding="utf-8")),
    long_description_content_type="text/markdown",
    keywords=cfg["keywords"].split(),
    author=cfg["author"],
    author_email=cfg["author_email"],
    url=f"{cfg['doc_host']}{cfg['doc_baseurl']}",
    project_urls={
        "Documentation": f"{cfg['doc_host']}{cfg['doc_baseurl']}",
        "Source": cfg["git_url"],
        "Changelog": f"{cfg['git_url']}/blob/main/CHANGELOG.md",
        "Issues": f"{cfg['git_url']}/issues",
    },
    license="Apache-2.0",
    license_files=["LICENSE"],
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
        *(f"Programming Language :: Python :: 3.{minor}" for minor in minor_versions),
    ],
    packages=find_packages(include=["attnbootreg*"]),
    package_data={
        "attnbootreg": [
            "weights/*.safetensors",
            "weights/parts/*.safetensors",
            "weights/banks/*.npz",
            "models.json",
            "explorer.js",
            "explorer.css",
            "py.typed",
        ]
    },
    python_requires=f">={cfg['min_python']}",
    install_requires=cfg["requirements"].split(),
    extras_require={name: cfg[f"{name}_requirements"].split() for name in ("study", "explore", "hf", "medical", "ray", "dev")},
    entry_points={
        "console_scripts": cfg["console_scripts"].split(),
        "nbdev": [f"{cfg['lib_name']}={cfg['lib_name']}._modidx:d"],
    },
    zip_safe=False,
)
