"""QuickLLaMA and its peers behind one interface.

A library is imported by :meth:`Engine.start` and nowhere else, so that a process pays only for the
one that it measures.
"""

from __future__ import annotations

import ctypes
import importlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol


class Engine(Protocol):
    """A library with one model and one timeline of tokens."""

    def start(self) -> None:
        """Import the library. Raises ModuleNotFoundError if it is not installed."""

    def load(self) -> None:
        """Load the model, and make an empty timeline."""

    def vocabulary(self) -> int:
        """Number of tokens that the model knows."""

    def clear(self) -> None:
        """Forget all tokens."""

    def read(self, ids: Sequence[int]) -> None:
        """Append tokens to the timeline; computes the logits of the last one."""

    def decode(self, count: int) -> None:
        """Append ``count`` tokens, each the best one after those before it."""

    def length(self) -> int:
        """Tokens on the timeline."""

    def logits(self) -> Any:
        """Of the last token: a NumPy array [vocabulary] of float32."""

    def save(self, path: Path) -> bool:
        """Write the timeline to a file; False if that is not possible."""

    def restore(self, path: Path) -> bool:
        """Take the timeline from such a file; it is this model's or one of the same shapes."""

    def held(self) -> dict[str, int]:
        """Bytes that the library knows to hold, by purpose: weights, session."""

    def details(self) -> dict[str, str]:
        """Kernels, libraries and threads in use."""


@dataclass
class Setting:
    """What an engine is asked to run.

    * ``model``: a file, a folder, or (QuickLLaMA) a name of made_models.py.
    * ``dtype``: how weights are held; ``threads``: how many.
    * ``most_tokens``: the longest timeline, for engines that must know beforehand.
    * ``variant``: QuickLLaMA's CPU variant, None: the best one; ``window``: of its memory, and
      ``memory``: fields of MemoryConfig that take precedence; ``skim``: skim texts instead.
    """

    model: str
    dtype: str
    threads: int
    most_tokens: int = 40960
    variant: str | None = None
    window: str = "1k"
    memory: dict[str, Any] = field(default_factory=dict)
    skim: bool = False


class Unsaved:
    """An engine whose timeline is not written to files."""

    def save(self, _path: Path) -> bool:
        return False

    def restore(self, _path: Path) -> bool:
        return False


@dataclass
class QuickLlama(Unsaved):
    """QuickLLaMA in mode qllm; the question is 32 tokens at the front."""

    setting: Setting
    state: dict[str, Any] = field(default_factory=dict)

    def start(self) -> None:
        self.state["ql"] = importlib.import_module("quickllama")

    def load(self) -> None:
        ql, setting = self.state["ql"], self.setting
        ql.set_cpu_variant(setting.variant)
        held: dict[str, Any] = {"dtype": setting.dtype, "n_threads": setting.threads}
        if setting.model.startswith("made:"):
            made = importlib.import_module("made_models")
            model = ql.Model(made.config_of(setting.model), made.weights_of(setting.model), **held)
        else:
            model = ql.Model.from_pretrained(setting.model, **held)
        self.state["model"] = model
        self.clear()

    def vocabulary(self) -> int:
        return int(self.state["model"].vocab_size)

    def clear(self) -> None:
        model, config = self.state["model"], self.state["ql"].MemoryConfig
        if self.setting.skim:
            known = model.retrieval_heads
            # A model without known heads: one of the last layer in the first third.
            heads = known.skim.heads if known and known.skim else [(model.n_layers // 3, 0)]
            self.state["session"] = model.session(config.skim(), skim_heads=heads)
            return
        memory = config.window(self.setting.window, **self.setting.memory)
        self.state["session"] = model.session(memory, query_span=(0, 32))

    def read(self, ids: Sequence[int]) -> None:
        if self.setting.skim:
            self.state["session"].read(list(ids))
        else:
            self.state["logits"] = self.state["session"].feed(list(ids))

    def decode(self, count: int) -> None:
        for _ in range(count):
            self.read([int(self.state["logits"].argmax())])

    def length(self) -> int:
        return len(self.state["session"])

    def logits(self) -> Any:
        return self.state["logits"]

    def held(self) -> dict[str, int]:
        return {"weights": self.state["model"].nbytes, "session": self.state["session"].nbytes}

    def details(self) -> dict[str, str]:
        core = importlib.import_module("quickllama._core")
        threads = self.state["model"].n_threads
        return {
            "variant": core.cpu_variant(),
            "blas": core.blas_name(),
            "threads": f"{threads} threads",
        }


@dataclass
class Transformers(Unsaved):
    """HuggingFace transformers on PyTorch, attention by sdpa."""

    setting: Setting
    state: dict[str, Any] = field(default_factory=dict)

    def start(self) -> None:
        self.state["torch"] = importlib.import_module("torch")
        self.state["transformers"] = importlib.import_module("transformers")

    def load(self) -> None:
        torch = self.state["torch"]
        torch.set_num_threads(self.setting.threads)
        loader = self.state["transformers"].AutoModelForCausalLM
        model = loader.from_pretrained(
            self.setting.model,
            dtype=getattr(torch, self.setting.dtype),
            attn_implementation="sdpa",
        )
        self.state["model"] = model.eval()
        self.clear()

    def vocabulary(self) -> int:
        return int(self.state["model"].config.vocab_size)

    def clear(self) -> None:
        self.state["cache"] = None

    def read(self, ids: Sequence[int]) -> None:
        torch = self.state["torch"]
        with torch.inference_mode():
            out = self.state["model"](
                input_ids=torch.tensor([list(ids)]),
                past_key_values=self.state["cache"],
                use_cache=True,
                logits_to_keep=1,
            )
        self.state["cache"] = out.past_key_values
        self.state["logits"] = out.logits[0, -1].float().numpy()

    def decode(self, count: int) -> None:
        for _ in range(count):
            self.read([int(self.state["logits"].argmax())])

    def length(self) -> int:
        cache = self.state["cache"]
        return 0 if cache is None else int(cache.get_seq_length())

    def logits(self) -> Any:
        return self.state["logits"]

    def held(self) -> dict[str, int]:
        parameters = self.state["model"].parameters()
        return {"weights": sum(p.numel() * p.element_size() for p in parameters)}

    def details(self) -> dict[str, str]:
        torch = self.state["torch"]
        return {
            "cpu": torch.backends.cpu.get_cpu_capability(),
            "threads": f"{torch.get_num_threads()} threads",
        }


@dataclass
class LlamaCpp:
    """llama.cpp through llama-cpp-python's plain bindings, with flash attention."""

    setting: Setting
    state: dict[str, Any] = field(default_factory=dict)
    batch: int = 2048

    def start(self) -> None:
        lib = importlib.import_module("llama_cpp")
        self.state["lib"] = lib
        # Kept: the library holds the function by its address alone.
        self.state["log"] = lib.llama_log_callback(lambda level, text, data: None)
        lib.llama_log_set(self.state["log"], ctypes.c_void_p(0))
        lib.llama_backend_init()

    def load(self) -> None:
        lib, setting = self.state["lib"], self.setting
        parameters = lib.llama_model_default_params()
        parameters.n_gpu_layers = 0
        model = lib.llama_model_load_from_file(setting.model.encode(), parameters)
        if not model:
            raise RuntimeError(f"llama.cpp cannot load {setting.model}")
        wanted = lib.llama_context_default_params()
        wanted.n_ctx, wanted.n_batch, wanted.n_ubatch = setting.most_tokens, self.batch, 512
        wanted.n_threads = wanted.n_threads_batch = setting.threads
        if hasattr(wanted, "flash_attn_type"):
            wanted.flash_attn_type = 1
        self.state["model"] = model
        self.state["context"] = lib.llama_init_from_model(model, wanted)
        if not self.state["context"]:
            raise RuntimeError(f"llama.cpp has no memory for {setting.most_tokens} tokens")

    def vocabulary(self) -> int:
        lib = self.state["lib"]
        return int(lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(self.state["model"])))

    def clear(self) -> None:
        lib = self.state["lib"]
        lib.llama_memory_clear(lib.llama_get_memory(self.state["context"]), False)

    def read(self, ids: Sequence[int]) -> None:
        lib = self.state["lib"]
        for at in range(0, len(ids), self.batch):
            part = list(ids[at : at + self.batch])
            tokens = (lib.llama_token * len(part))(*part)
            batch = lib.llama_batch_get_one(tokens, len(part))
            status = lib.llama_decode(self.state["context"], batch)
            if status:
                raise RuntimeError(f"llama_decode answered {status}")
        lib.llama_synchronize(self.state["context"])

    def decode(self, count: int) -> None:
        for _ in range(count):
            self.read([int(self.logits().argmax())])

    def length(self) -> int:
        lib = self.state["lib"]
        memory = lib.llama_get_memory(self.state["context"])
        return int(lib.llama_memory_seq_pos_max(memory, 0)) + 1

    def logits(self) -> Any:
        numpy = importlib.import_module("numpy")
        found = self.state["lib"].llama_get_logits_ith(self.state["context"], -1)
        return numpy.ctypeslib.as_array(found, (self.vocabulary(),))

    def save(self, path: Path) -> bool:
        lib, none = self.state["lib"], (ctypes.c_int32 * 1)()
        name = str(path).encode()
        return bool(lib.llama_state_seq_save_file(self.state["context"], name, 0, none, 0))

    def restore(self, path: Path) -> bool:
        lib, none, count = self.state["lib"], (ctypes.c_int32 * 1)(), ctypes.c_size_t()
        name = str(path).encode()
        return bool(
            lib.llama_state_seq_load_file(
                self.state["context"], name, 0, none, 1, ctypes.byref(count)
            )
        )

    def held(self) -> dict[str, int]:
        lib = self.state["lib"]
        return {
            "weights": int(lib.llama_model_size(self.state["model"])),
            "session": int(lib.llama_state_get_size(self.state["context"])),
        }

    def details(self) -> dict[str, str]:
        lib = self.state["lib"]
        flags = re.findall(r"(\w+) = 1", lib.llama_print_system_info().decode())
        return {
            "system": " ".join(flags),
            "threads": f"{lib.llama_n_threads(self.state['context'])} threads",
        }


ENGINES: dict[str, Callable[[Setting], Engine]] = {
    "quickllama": QuickLlama,
    "transformers": Transformers,
    "llamacpp": LlamaCpp,
}
