# For a CPU:    docker build -t efficientnet .
# For an NPU:   docker build -t efficientnet --build-arg BASE=IMAGE .
#               with an image of the vendor's that has CANN and Python 3.9 to 3.12, for example one of quay.io/ascend/cann
# Then:         docker run --rm -v /data:/data -v "$PWD":/work efficientnet \
#                   python3 /opt/efficientnet/eval.py --dataset_path /data/val --checkpoint_path best.ckpt
ARG BASE=python:3.11-slim-bookworm
FROM ${BASE}

# The image engine and the kernels are compiled on first use: a compiler, and libjpeg's headers.
COPY scripts/common.sh scripts/install_system_packages.sh /opt/efficientnet/scripts/
RUN sh /opt/efficientnet/scripts/install_system_packages.sh g++/gcc-c++ libjpeg-dev/libjpeg-turbo-devel

# Packages before sources, so that a changed source does not install them anew.
COPY requirements.txt /opt/efficientnet/
RUN python3 -m pip install --no-cache-dir -r /opt/efficientnet/requirements.txt

COPY . /opt/efficientnet
# Outputs go to the folder that is mounted here. What is compiled is kept where XDG_CACHE_HOME is mounted, too.
ENV XDG_CACHE_HOME=/tmp/cache
WORKDIR /work
CMD ["bash"]
