# ROS 2 Humble on a Jetson Orin with JetPack 6 (L4T r36, Python 3.10). torch and TensorRT have to be the ones that
# NVIDIA builds for it, so the base is an image that holds them, made on the Jetson with jetson-containers:
#
#     jetson-containers build --name=jetson_ros tensorrt pytorch transformers ros:humble-ros-base
#     docker build -f docker/jetson.Dockerfile --build-arg BASE=jetson_ros:TAG -t evspec_ros .
#     docker run --rm -it --runtime nvidia --net=host --ipc=host -v evspec_cache:/root/.cache/evspec_ros evspec_ros
#
# TensorRT compiles on the Jetson alone: the volume keeps the plans from one start to the next.
# Written from the documentation of those images; it has not been built yet.
ARG BASE
FROM ${BASE}
SHELL ["/bin/bash", "-c"]

# These images build ROS from source, so packages of ROS come through their script, not from apt.
RUN /ros2_install.sh event_camera_msgs

WORKDIR /workspace
# A venv that sees the base's packages: its torch, numpy and OpenCV satisfy the ranges, so pip leaves them alone.
COPY requirements-robot.txt .
RUN python3 -m venv --system-site-packages venv && touch venv/COLCON_IGNORE \
    && venv/bin/pip install --no-cache-dir -r requirements-robot.txt jinja2 matplotlib
COPY . src/evspec_ros
RUN source /opt/ros/humble/install/setup.bash && source venv/bin/activate && colcon build && rm -rf build log

RUN printf '#!/bin/bash\nset -e\nsource /opt/ros/humble/install/setup.bash\nsource /workspace/venv/bin/activate\n\
source /workspace/install/setup.bash\nexec "$@"\n' > /entrypoint.sh && chmod +x /entrypoint.sh
ENTRYPOINT ["/entrypoint.sh"]
CMD ["ros2", "launch", "evspec_ros", "evspec.launch.py"]
