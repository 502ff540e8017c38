"""Package `config/` inside `tokenuq_ml`, so that an installed wheel finds the shipped configuration.

All other metadata is in pyproject.toml, which cannot map a folder outside a package into it.
"""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["tokenuq_ml*", "tokenuq_pipeline*"]), "tokenuq_ml.config.shipped_files"],
    package_dir={"tokenuq_ml.config.shipped_files": "config"},
)
