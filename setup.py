"""ament_python package; name, version, description and licence stand in package.xml alone."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

from setuptools import find_packages, setup

MANIFEST = ElementTree.parse("package.xml").getroot()  # noqa: S314 (our own file)
NAME = MANIFEST.findtext("name", "")
SHARE = Path("share", NAME)


def shared_files(*folders: str) -> list[tuple[str, list[str]]]:
    """Every file below `folders`, each destined for the same place below share/<package>."""
    files = (path for folder in folders for path in sorted(Path(folder).rglob("*")) if path.is_file())
    return [
        (str(SHARE / path.parent), [str(path)])
        for path in files
        if "__pycache__" not in path.parts and not path.name.startswith(".")  # half-written checkpoints
    ]


setup(
    name=NAME,
    version=MANIFEST.findtext("version"),
    description=" ".join(MANIFEST.findtext("description", "").split()),
    license=MANIFEST.findtext("license"),
    python_requires=">=3.10,<3.15",
    packages=find_packages(include=[NAME, f"{NAME}.*"]),
    package_data={
        NAME: ["py.typed"],
        f"{NAME}.evaluation": ["*.html", "*.jinja"],
        f"{NAME}.ros.trials": ["*.html"],
        f"{NAME}.interfaces": ["*/msg/*.msg", "*/action/*.action", "*/package.xml", "*/CMakeLists.txt"],
    },
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{NAME}"]),
        (str(SHARE), ["package.xml"]),
        *shared_files("launch", "config", "models"),
    ],
    # The ranges the package accepts; requirements.txt pins the versions it is tested with.
    install_requires=[
        "accelerate>=1.2",
        "apsw",
        "backports.zstd; python_version < '3.14'",
        "jinja2>=3",
        "lz4>=4",
        "matplotlib>=3.5",
        "numba>=0.57",
        "numpy>=1.22",
        "onnx>=1.16",
        "onnxruntime>=1.22",
        "opencv-python-headless>=4.5",
        "protobuf>=4",
        "psutil>=5",
        "rich>=12",
        "rosbags>=0.11.7",
        "ruamel.yaml",
        "safetensors>=0.4",
        "sentencepiece>=0.1.99",
        "tensorboard>=2.14",
        "tokenizers>=0.20",
        "torch>=2.4",
        "transformers>=4.46",
    ],
    extras_require={
        # Recordings of DSEC, in HDF5 compressed with Blosc.
        "dsec": ["h5py>=3", "hdf5plugin>=4"],
        # What `evspec eval` scores texts with.
        "scores": ["rouge-score>=0.1.2", "sacrebleu>=2.3"],
        # The page of `evspec watch`.
        "watch": ["aiohttp>=3.8"],
        # `evspec eval --ray`.
        "fleet": ["ray>=2.9"],
        # What `evspec bench ingest` compares with.
        "peer": ["evt3>=0.4; platform_machine == 'x86_64'"],
        # What `colcon test` looks for before it runs pytest.
        "test": ["hypothesis", "pytest"],
        # The precisions int8 and int4.
        "quantised": ["torchao>=0.17"],
        # ROS 2 Jazzy as wheels, for machines without a ROS installation; other platforms have none.
        "ros": [
            f"{name}; sys_platform == 'linux' and platform_machine == 'x86_64' and python_version >= '3.11'"
            for name in (
                "ros-rclpy[fastrtps]==7.1.6",
                "ros-diagnostic-msgs==5.3.6",
                "ros-sensor-msgs==5.3.6",
                "ros-std-msgs==5.3.6",
                "ros-std-srvs==5.3.6",
            )
        ],
        # TensorRT for desktop GPUs; on a Jetson, JetPack brings TensorRT itself.
        "tensorrt": ["tensorrt-rtx>=1.7; sys_platform == 'linux' and platform_machine == 'x86_64'"],
    },
    zip_safe=False,
    entry_points={
        "console_scripts": [f"evspec = {NAME}.cli:main", f"evspec_node = {NAME}.ros.main:main"],
    },
)
