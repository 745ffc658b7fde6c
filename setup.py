"""Installs spectrodiff; see README.md."""

import pathlib

from setuptools import find_packages, setup

FEATURES = {
    "data": ["array-record>=0.8", "pyyaml>=6.0", "tensorflow-datasets>=4.9.9"],
    "render": ["music21>=9"],  # and pyfluidsynth, installed with --no-deps: see the Makefile
    "hub": ["huggingface_hub>=0.25"],
    "onnx": ["onnxruntime>=1.19"],
    "eval": ["mir_eval>=0.8", "onnxruntime>=1.19"],  # and basic-pitch, installed with --no-deps: see the Makefile
    "tf": ["tensorflow>=2.16"],
    "beam": ["apache-beam>=2.60"],
    "app": ["gradio>=6"],
    "completion": ["shtab>=1.13"],
}
TOGETHER = ("data", "render", "hub", "onnx", "eval", "app", "completion")  # without the heavy ones: tf and beam

setup(
    name="spectrodiff",
    version="0.1.0",
    description="MIDI in, music out: spectrogram diffusion in JAX",
    long_description=(pathlib.Path(__file__).parent / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11,<3.14",
    # configs/ and examples/ lie at the top of the repository and are installed inside the package.
    packages=[*find_packages(include=["spectrodiff", "spectrodiff.*"]), "spectrodiff.configs", "spectrodiff.examples"],
    package_dir={"spectrodiff.configs": "configs", "spectrodiff.examples": "examples"},
    package_data={
        "spectrodiff.app": ["*.css", "*.html", "*.js"],
        "spectrodiff.configs": ["*.gin", "parts/*.gin"],
        "spectrodiff.evaluation": ["weights/*/*"],
        "spectrodiff.examples": ["*.mid", "README.md"],
        "spectrodiff.pretrained": ["weights/*/*"],
    },
    install_requires=[
        "jax>=0.10",
        "flax>=0.12",
        "flax>=0.12.9; python_version >= '3.12'",  # earlier ones do not import with jax 0.11, which needs Python 3.12
        "optax>=0.2.8",
        "orbax-checkpoint>=0.12",
        "grain>=0.2.18",
        "audioop-lts>=0.2; python_version >= '3.13'",  # of the standard library until then: note-seq imports it
        "beartype>=0.18",
        "gin-config>=0.5",
        "jaxtyping>=0.3",
        "matplotlib>=3.8",
        "mido>=1.3",
        "ml-dtypes>=0.5",
        "msgpack>=1.0",
        "note-seq>=0.0.5",
        "numpy>=2.0",
        "pyloudnorm>=0.2",
        "safetensors>=0.5",
        "scipy>=1.13",
        "soundfile>=0.12",
        "tensorboardX>=2.6",
        "tensorstore>=0.1.70",
        "threadpoolctl>=3.1",
        "tqdm>=4.66",
    ],
    extras_require={
        **FEATURES,
        "all": sorted({requirement for name in TOGETHER for requirement in FEATURES[name]}),
        "docs": ["mkdocs>=1.6,<2", "mkdocs-material>=9.5", "mkdocstrings[python]>=0.26"],
        "peers": ["diffusers==0.42.1", "note-seq==0.0.5", "torch==2.13.0", "transformers==5.16.1"],
        "dev": [
            *FEATURES["app"],
            "huggingface_hub>=0.25",
            "hypothesis>=6.100",
            "ipykernel>=6.29",
            "mir_eval>=0.8",
            "nbclient>=0.10.1",
            "nbformat>=5.10",
            "onnx>=1.17",
            "onnxruntime>=1.19",
            "playwright>=1.50",  # drives the system's Chromium and downloads none
            "pytest>=8",
            "pytest-xdist>=3.6",
            "ruff>=0.6",
            "shtab>=1.13",
        ],
    },
    entry_points={"console_scripts": ["spectrodiff = spectrodiff.cli:main"]},
)
