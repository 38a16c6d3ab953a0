# ROS 2 Jazzy on x86-64, with a GPU where the machine has one:
#
#     docker build -f docker/desktop.Dockerfile -t evspec_ros .
#     docker run --rm -it --net=host --ipc=host --gpus all evspec_ros ros2 launch evspec_ros evspec.launch.py
#
# Written from the documentation of the images and packages it names; it has not been built yet.
FROM ros:jazzy-ros-base

RUN apt-get update && apt-get install -y --no-install-recommends \
      python3-matplotlib python3-numba python3-numpy python3-opencv python3-pip python3-rich \
      ros-jazzy-event-camera-msgs ros-jazzy-launch-ros \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /workspace
COPY . src/evspec_ros
# pip resolves what the package needs beside apt's; the package itself is then installed by colcon alone.
RUN pip install --no-cache-dir --break-system-packages -c src/evspec_ros/constraints-system-ros.txt ./src/evspec_ros \
    && pip uninstall --yes --break-system-packages evspec_ros \
    && . /opt/ros/jazzy/setup.sh && colcon build && rm -rf build log

# ros_entrypoint.sh of the base image sources Jazzy; this workspace lies on top of it.
RUN printf '#!/bin/bash\nset -e\nsource /workspace/install/setup.bash\nexec "$@"\n' > /entrypoint.sh \
    && chmod +x /entrypoint.sh
ENTRYPOINT ["/ros_entrypoint.sh", "/entrypoint.sh"]
CMD ["ros2", "launch", "evspec_ros", "evspec.launch.py"]
