# ROS 2 Jazzy on x86-64, with a GPU where the machine has one:
#
#     docker build -f docker/desktop.Dockerfile -t evspec_ros .
#     docker run --rm -it --net=host --ipc=host --gpus all evspec_ros ros2 launch evspec_ros evspec.launch.py
#
# It compiles the tiny drafter with TensorRT for the GPUs that CAPABILITIES names (--build-arg CAPABILITIES="8.9 12.0").
# Written from the documentation of the images and packages it names; it has not been built yet.
FROM ros:jazzy-ros-base
ARG CAPABILITIES="8.6 8.9"

# ROS's archive keeps no old versions to pin.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends \
      python3-jinja2 python3-matplotlib python3-numba python3-numpy python3-opencv python3-rich python3-venv \
      ros-jazzy-event-camera-msgs ros-jazzy-launch-ros \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /workspace
# What rosdep cannot install goes into a venv that sees apt's packages, as on a robot (README.md).
COPY requirements-robot.txt .
RUN python3 -m venv --system-site-packages venv && touch venv/COLCON_IGNORE \
    && venv/bin/pip install --no-cache-dir -r requirements-robot.txt "tensorrt-rtx>=1.7"
COPY . src/evspec_ros
RUN . /opt/ros/jazzy/setup.sh && . venv/bin/activate && colcon build && rm -rf build log

# Plans for the named GPUs, so that no start has to compile them. float32 is the node's default.
RUN . venv/bin/activate && . install/setup.sh \
    && for capability in ${CAPABILITIES}; do set -- "$@" --compute-capability "${capability}"; done \
    && python3 -m evspec_ros export --backend tensorrt "$@"

# ros_entrypoint.sh of the base image sources Jazzy; this workspace and its venv lie on top of it.
RUN printf '#!/bin/bash\nset -e\nsource /workspace/venv/bin/activate\nsource /workspace/install/setup.bash\nexec "$@"\n' \
      > /entrypoint.sh \
    && chmod +x /entrypoint.sh
ENTRYPOINT ["/ros_entrypoint.sh", "/entrypoint.sh"]
CMD ["ros2", "launch", "evspec_ros", "evspec.launch.py"]
