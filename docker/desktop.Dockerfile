# ROS 2 Jazzy on x86-64, with a GPU where the machine has one:
#
#     docker build -f docker/desktop.Dockerfile -t evspec_ros .
#     docker run --rm -it --net=host --ipc=host --gpus all evspec_ros ros2 launch evspec_ros evspec.launch.py
#
# Written from the documentation of the images and packages it names; it has not been built yet.
FROM ros:jazzy-ros-base

RUN apt-get update && apt-get install -y --no-install-recommends \
      python3-jinja2 python3-matplotlib python3-numba python3-numpy python3-opencv python3-rich python3-venv \
      ros-jazzy-event-camera-msgs ros-jazzy-launch-ros \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /workspace
# What rosdep cannot install goes into a venv that sees apt's packages, as on a robot (README.md).
COPY requirements-robot.txt .
RUN python3 -m venv --system-site-packages venv && touch venv/COLCON_IGNORE \
    && venv/bin/pip install --no-cache-dir -r requirements-robot.txt
COPY . src/evspec_ros
RUN . /opt/ros/jazzy/setup.sh && . venv/bin/activate && colcon build && rm -rf build log

# ros_entrypoint.sh of the base image sources Jazzy; this workspace and its venv lie on top of it.
RUN printf '#!/bin/bash\nset -e\nsource /workspace/venv/bin/activate\nsource /workspace/install/setup.bash\nexec "$@"\n' \
      > /entrypoint.sh \
    && chmod +x /entrypoint.sh
ENTRYPOINT ["/ros_entrypoint.sh", "/entrypoint.sh"]
CMD ["ros2", "launch", "evspec_ros", "evspec.launch.py"]
