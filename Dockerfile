# hadolint global ignore=DL3013
# Images that train, for each kind of device:
#
#     docker build --target=cpu --tag=lmjax:cpu .
#     docker build --target=cuda --tag=lmjax:cuda .
#     docker build --target=tpu --tag=lmjax:tpu .
#
# CUDA's libraries come with jax; a host needs NVIDIA's driver and container toolkit.
ARG PYTHON=3.12
FROM python:${PYTHON}-slim AS source
WORKDIR /opt/lmjax
ENV PYTHONUNBUFFERED=1
COPY pyproject.toml setup.cfg README.md LICENSE ./
COPY lmjax lmjax
COPY experiments experiments
COPY tools tools
ENTRYPOINT ["lmjax"]

FROM source AS cuda
RUN pip install --no-cache-dir '.[cuda,hf,sweep,gcs,s3]'

FROM source AS tpu
RUN pip install --no-cache-dir '.[tpu,hf,sweep,gcs,s3]'

FROM source AS cpu
RUN pip install --no-cache-dir '.[hf,sweep,gcs,s3]'
