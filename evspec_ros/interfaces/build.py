"""Builds the message packages defined here against the pip wheels of ROS 2, without colcon or CMake.

    python -m evspec_ros.interfaces.build [PACKAGE ...]

It takes the steps that rosidl_generate_interfaces() takes in CMake, for C and Python:

1. .msg or .action -> .idl -> type description with its RIHS01 hash
2. five generators -> C, C++ and Python sources, each in a tree of its own because file names repeat
3. compiler -> five libraries per package, and one Python extension per type support
4. one wheel per package, installed with pip: Python into site-packages, libraries into <prefix>/lib

<prefix>/lib is where the libraries have to be: librosidl_typesupport_c.so opens those of a package by bare
name, and the ROS wheels put that folder, and no other, on LD_LIBRARY_PATH.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib.util
import io
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from evspec_ros.errors import EvspecError, RosError
from evspec_ros.interfaces import DEFINITIONS

PREFIX = Path(sys.prefix)
PACKAGES = tuple(sorted(path.parent.name for path in DEFINITIONS.glob("*/msg")))
# Of the packages defined here; all but the first two those of actions.
DEPENDENCIES = ("std_msgs", "builtin_interfaces", "action_msgs", "service_msgs", "unique_identifier_msgs")
KINDS = ("action", "msg")  # folders of definitions, whose files end in the same
VERSION = "1.0.0"

FASTRTPS, INTROSPECTION = "rosidl_typesupport_fastrtps_c", "rosidl_typesupport_introspection_c"
DISPATCH = "rosidl_typesupport_c"  # chooses one of the two at run time
STRUCTS, PYTHON = "rosidl_generator_c", "rosidl_generator_py"
GENERATORS = (STRUCTS, INTROSPECTION, FASTRTPS, DISPATCH, PYTHON)
EXTENSIONS = (DISPATCH, FASTRTPS, INTROSPECTION)

C = ("gcc", "-std=gnu11")
CXX = ("g++", "-std=c++17")
FLAGS = ("-O2", "-fPIC", "-shared", '-DROS_PACKAGE_NAME="evspec_ros"', "-DNDEBUG")
RUNTIME = ("-lrosidl_runtime_c", "-lrcutils", f"-l{DISPATCH}", "-lrosidl_dynamic_typesupport", "-lrmw")


@dataclass(frozen=True)
class Package:
    """One message package and the folder in which it is built."""

    name: str
    build: Path

    @property
    def definitions(self) -> list[Path]:
        """What it defines, such as msg/EventPacket.msg."""
        folder = DEFINITIONS / self.name
        return sorted(path.relative_to(folder) for kind in KINDS for path in folder.glob(f"{kind}/*.{kind}"))

    @property
    def share(self) -> Path:
        """The .msg, .action, .idl and .json files: what will be <prefix>/share/<package>."""
        return self.build / "share" / self.name

    def sources(self, generator: str) -> Path:
        """What a generator wrote for this package."""
        return self.build / generator / self.name

    def library(self, part: str) -> Path:
        """The shared library of one generator's output."""
        return self.build / "lib" / f"lib{self.name}__{part}.so"


@dataclass(frozen=True)
class Compilation:
    """One shared object: what goes in, what it links to (names without 'lib'), what comes out."""

    package: Package
    compiler: tuple[str, ...]
    sources: Sequence[Path]
    links: Sequence[str]
    output: Path


def missing_packages(names: Iterable[str] = PACKAGES) -> list[str]:
    """Those packages that cannot be imported from this Python, or lack a kind of what is defined here: then
    they are of an earlier version.
    """
    return [name for name in names if not _is_there(name)]


def _is_there(name: str) -> bool:
    kinds = {definition.parent.name for definition in Package(name, Path()).definitions}
    return all(importlib.util.find_spec(module) for module in (name, *(f"{name}.{kind}" for kind in kinds)))


def build(names: Sequence[str]) -> None:
    """Build message packages and install them into this Python environment; RosError says why not."""
    _require_tools()
    with tempfile.TemporaryDirectory(prefix="evspec_messages_") as folder:
        packages = [Package(name, Path(folder, name)) for name in names]
        for package in packages:
            generate(package)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for stage in (structs, libraries, extensions):  # each links to what the ones before it made
                list(pool.map(compile_one, [unit for package in packages for unit in stage(package)]))
        install([pack(package) for package in packages])


def _require_tools() -> None:
    if not (PREFIX / "include" / "rosidl_runtime_c").is_dir():
        raise RosError(
            f"The ROS 2 wheels are not installed in {PREFIX}: run pip install 'evspec_ros[ros]', "
            "or, where ROS itself is installed, get the message packages from apt or build them with colcon."
        )
    header = Path(sysconfig.get_paths()["include"], "Python.h")
    missing = [tool for tool in ("gcc", "g++") if shutil.which(tool) is None]
    missing += [] if header.is_file() else [str(header)]
    if missing:
        raise RosError(
            f"Compiling the ROS messages needs {' and '.join(missing)}: apt install gcc g++ python3-dev, "
            "or what your system calls them."
        )


def generate(package: Package) -> None:
    """Write the sources of a package: steps 1 and 2."""
    # These come with the ROS wheels.
    import rosidl_generator_c
    import rosidl_generator_py
    import rosidl_generator_type_description
    import rosidl_typesupport_c
    import rosidl_typesupport_fastrtps_c
    import rosidl_typesupport_introspection_c
    from rosidl_adapter import convert_to_idl

    os.environ["AMENT_PREFIX_PATH"] = str(PREFIX)  # the generators look each other up in the ament index
    python = package.sources(PYTHON)
    for definition in package.definitions:
        for folder in (package.share, python):
            (folder / definition.parent).mkdir(parents=True, exist_ok=True)
        shutil.copy(DEFINITIONS / package.name / definition, package.share / definition)
    (python / "__init__.py").touch()

    arguments = functools.partial(_generator_arguments, package)
    with contextlib.redirect_stdout(io.StringIO()):  # the generators name every file that they write
        for definition in package.definitions:
            convert_to_idl(package.share, package.name, definition, package.share)
        rosidl_generator_type_description.generate_type_hash(
            arguments(
                "rosidl_generator_type_description",
                output_dir=str(package.share),
                include_paths=[f"{name}:{PREFIX / 'share' / name}" for name in DEPENDENCIES],
            )
        )
        rosidl_generator_c.generate_c(
            arguments(
                STRUCTS,
                type_description_tuples=[
                    f"{one.with_suffix('.idl')}:{package.share / one.with_suffix('.json')}"
                    for one in package.definitions
                ],
                ros_interface_files=[str(package.share / one) for one in package.definitions],
            )
        )
        rosidl_typesupport_introspection_c.generate_c(arguments(INTROSPECTION))
        rosidl_typesupport_fastrtps_c.generate_typesupport_fastrtps_c(arguments(FASTRTPS))
        rosidl_typesupport_c.generate_c(arguments(DISPATCH), [FASTRTPS, INTROSPECTION])
        rosidl_generator_py.generate_py(arguments(PYTHON), EXTENSIONS)


def _generator_arguments(package: Package, generator: str, **more: object) -> str:
    """Write the JSON file that a generator takes as its argument, and the visibility header it looks for."""
    templates = PREFIX / "share" / generator / "resource"
    output = package.sources(generator)
    for template in templates.glob("*__visibility_control.h.in"):
        text = template.read_text().replace("@PROJECT_NAME@", package.name)
        header = output / "msg" / template.name.removesuffix(".in")
        header.parent.mkdir(parents=True, exist_ok=True)
        header.write_text(text.replace("@PROJECT_NAME_UPPER@", package.name.upper()))
    arguments = {
        "package_name": package.name,
        "output_dir": str(output),
        "template_dir": str(templates),
        "idl_tuples": [f"{package.share}:{one.with_suffix('.idl')}" for one in package.definitions],
        "ros_interface_dependencies": [],
        "target_dependencies": [],
        **more,
    }
    file = package.build / f"{generator}.json"
    file.write_text(json.dumps(arguments))
    return str(file)


def structs(package: Package) -> list[Compilation]:
    """The library of the C structs, to which all others link."""
    details = [
        source
        for part in ("description", "functions", "type_support")
        for source in _sources(package, STRUCTS, f"detail/{{}}__{part}.c")
    ]
    return [Compilation(package, C, details, _dependencies(STRUCTS), package.library(STRUCTS))]


def libraries(package: Package) -> list[Compilation]:
    """The libraries of the type supports and of the conversion from and to Python."""
    own = f"{package.name}__{STRUCTS}"
    return [
        Compilation(
            package,
            C,
            _sources(package, INTROSPECTION, "detail/{}__type_support.c"),
            [own, INTROSPECTION, *_dependencies(INTROSPECTION, STRUCTS)],
            package.library(INTROSPECTION),
        ),
        Compilation(
            package,
            CXX,
            _sources(package, FASTRTPS, "detail/{}__type_support_c.cpp"),
            [own, FASTRTPS, "rosidl_typesupport_fastrtps_cpp", "fastcdr", *_dependencies(FASTRTPS, STRUCTS)],
            package.library(FASTRTPS),
        ),
        Compilation(
            package,
            CXX,
            _sources(package, DISPATCH, "{}__type_support.cpp"),
            [own, *_dependencies(DISPATCH)],
            package.library(DISPATCH),
        ),
        Compilation(
            package,
            C,
            _sources(package, PYTHON, "_{}_s.c"),
            [own, *_dependencies(PYTHON, STRUCTS)],
            package.library(PYTHON),
        ),
    ]


def extensions(package: Package) -> list[Compilation]:
    """The Python extension modules, one per type support."""
    own = [f"{package.name}__{part}" for part in (STRUCTS, PYTHON, DISPATCH)]
    python = package.sources(PYTHON)
    return [
        Compilation(
            package,
            C,
            [python / f"_{package.name}_s.ep.{support}.c"],
            [*own, *([] if support == DISPATCH else [f"{package.name}__{support}"])],
            python / f"{package.name}_s__{support}.so",
        )
        for support in EXTENSIONS
    ]


def _sources(package: Package, generator: str, pattern: str) -> list[Path]:
    """One source file per definition, named after it in snake case."""
    from rosidl_pycommon import convert_camel_case_to_lower_case_underscore as snake_case

    folder = package.sources(generator)
    return [folder / one.parent / pattern.format(snake_case(one.stem)) for one in package.definitions]


def _dependencies(*parts: str) -> list[str]:
    return [f"{package}__{part}" for package in DEPENDENCIES for part in parts]


def compile_one(unit: Compilation) -> None:
    """Compile and link one shared object; RosError with the compiler's own words where it fails."""
    unit.output.parent.mkdir(parents=True, exist_ok=True)
    command = [
        *unit.compiler,
        *FLAGS,
        *(f"-I{unit.package.sources(generator).parent}" for generator in GENERATORS),
        *(f"-I{folder}" for folder in _include_folders()),
        *map(str, unit.sources),
        f"-L{unit.output.parent}",
        f"-L{unit.package.library(STRUCTS).parent}",
        f"-L{PREFIX / 'lib'}",
        *(f"-l{link}" for link in unit.links),
        *RUNTIME,
        f"-Wl,-soname,{unit.output.name}",
        "-o",
        str(unit.output),
    ]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise RosError(
            f"Compiling {unit.output.name} of the message package {unit.package.name} failed; "
            f"the compiler said:\n{result.stderr}"
        )


@functools.cache
def _include_folders() -> tuple[Path, ...]:
    """The headers of the ROS wheels (include/<package>/<package>/*.h), of Python and of numpy."""
    import numpy as np

    ros = (folder for folder in (PREFIX / "include").iterdir() if (folder / folder.name).is_dir())
    return (*sorted(ros), PREFIX / "include", Path(sysconfig.get_paths()["include"]), Path(np.get_include()))


def pack(package: Package) -> Path:
    """Lay a built package out as a wheel, and pack it."""
    distribution = f"ros_{package.name}-{VERSION}"
    tree = package.build / "wheel"
    ignored = shutil.ignore_patterns("*.c", "*.h")
    shutil.copytree(package.sources(PYTHON), tree / package.name, ignore=ignored)
    data = tree / f"{distribution}.data" / "data"
    shutil.copytree(package.build / "lib", data / "lib")
    shutil.copytree(package.share, data / "share" / package.name)
    suffixes = (".idl", ".json")
    described = [one.with_suffix(suffix) for one in package.definitions for suffix in suffixes]
    interfaces = sorted(f"{one}\n" for one in (*described, *package.definitions))
    for resource, content in (("packages", ""), ("rosidl_interfaces", "".join(interfaces))):
        entry = data / "share" / "ament_index" / "resource_index" / resource / package.name
        entry.parent.mkdir(parents=True)
        entry.write_text(content)
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
    platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
    info = tree / f"{distribution}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: ros-{package.name.replace('_', '-')}\nVersion: {VERSION}\n"
    )
    (info / "WHEEL").write_text(
        f"Wheel-Version: 1.0\nGenerator: evspec_ros\nRoot-Is-Purelib: false\nTag: {tag}-{tag}-{platform}\n"
    )
    _run_module("wheel", "pack", str(tree), "--dest-dir", str(package.build))
    return next(package.build.glob("*.whl"))


def install(wheels: Sequence[Path]) -> None:
    """Install wheels into this Python environment."""
    _run_module(
        "pip", "install", "--quiet", "--no-index", "--no-deps", "--force-reinstall", *map(str, wheels)
    )


def _run_module(*command: str) -> None:
    result = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True, check=False)
    if result.returncode:
        raise RosError(f"python -m {' '.join(command[:2])} failed:\n{result.stderr or result.stdout}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Build what is missing of the packages named (all, where none is); return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m evspec_ros.interfaces.build",
        description="Builds those event-camera message packages that this Python cannot import.",
    )
    parser.add_argument(
        "packages", nargs="*", metavar="PACKAGE", help=f"one of {', '.join(PACKAGES)}; default: all"
    )
    names = parser.parse_args(arguments).packages or PACKAGES
    for name in names:
        if name not in PACKAGES:
            parser.error(f"no message package {name!r} is defined here, but {', '.join(PACKAGES)} are")
    missing = missing_packages(names)
    if not missing:
        print("every message package is there already")
        return 0
    try:
        build(missing)
    except EvspecError as error:
        print(f"evspec: {error}", file=sys.stderr)
        return 1
    print(
        f"built and installed {', '.join(missing)}" if missing else "every message package is there already"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
