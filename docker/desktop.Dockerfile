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
      python3-matplotlib python3-numba python3-numpy python3-opencv python3-pip python3-rich \
      ros-jazzy-event-camera-msgs ros-jazzy-launch-ros \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /workspace
COPY . src/evspec_ros
# pip resolves what the package needs beside apt's; the package itself is then installed by colcon alone.
RUN pip install --no-cache-dir --break-system-packages -c src/evspec_ros/constraints-system-ros.txt "./src/evspec_ros[tensorrt]" \
    && pip uninstall --yes --break-system-packages evspec_ros \
    && . /opt/ros/jazzy/setup.sh && colcon build && rm -rf build log

# Plans for the named GPUs, so that no start has to compile them. float32 is the node's default.
RUN . install/setup.sh \
    && for capability in ${CAPABILITIES}; do set -- "$@" --compute-capability "${capability}"; done \
    && python3 -m evspec_ros export --backend tensorrt "$@"

# ros_entrypoint.sh of the base image sources Jazzy; this workspace lies on top of it.
RUN printf '#!/bin/bash\nset -e\nsource /workspace/install/setup.bash\nexec "$@"\n' > /entrypoint.sh \
    && chmod +x /entrypoint.sh
ENTRYPOINT ["/ros_entrypoint.sh", "/entrypoint.sh"]
CMD ["ros2", "launch", "evspec_ros", "evspec.launch.py"]
