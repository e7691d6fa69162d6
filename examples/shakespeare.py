"""What the examples train, and on what: a tiny model, and Shakespeare's plays, a byte a token."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from potluck.data.text import demo_text, hold_out

CONTEXT = 64


def text(part: str) -> str:
    """To train on (``part = "train"``), or held out (``"test"``)."""
    train, test = hold_out(demo_text())
    return "".join(words for _, words in (train if part == "train" else test))


def lines(part: str) -> list[str]:
    """Those that say something."""
    return [line for line in text(part).splitlines() if len(line) > 20]


def rows(part: str, most: int = 20_000) -> torch.Tensor:
    """Bytes [rows, context]."""
    raw = text(part).encode()
    size = min(len(raw) // CONTEXT, most)
    return torch.frombuffer(bytearray(raw[: size * CONTEXT]), dtype=torch.uint8).long().view(size, CONTEXT)


def tiny_llama(vocab: int = 256) -> LlamaForCausalLM:
    """A model of 0.1 million parameters, its random weights the same everywhere."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=CONTEXT,
        bos_token_id=None,
        eos_token_id=None,
    )
    return LlamaForCausalLM(config)


@torch.no_grad()
def heldout_loss(model: torch.nn.Module) -> float:
    """In nats a byte."""
    model.eval()
    test = rows("test", 256)
    loss = model(input_ids=test, labels=test).loss.item()
    model.train()
    return loss
