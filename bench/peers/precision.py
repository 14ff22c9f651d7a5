"""How far an attention's output is from float64. Tensors are [batch, heads, length, head_dim]."""

import pathlib

import torch


def load(folder, name, params, dtype):
    """One of the files q, k, v, o of packed rows [batch, length, heads, head_dim], 16-bit."""
    heads = params["numQHeads" if name in "qo" else "numKvHeads"]
    data = bytearray(pathlib.Path(folder, f"{name}.bin").read_bytes())
    rows = torch.frombuffer(data, dtype=dtype)
    shape = params["batch"], params["seqLen"], heads, params["headDim"]
    return rows.reshape(shape).transpose(1, 2).contiguous()


def reference(q, k, v, block=1024):
    """Causal attention in float64: a head and a block of rows at a time, to bound the memory."""
    out = torch.empty(q.shape, dtype=torch.float64, device=q.device)
    batch, heads, length, head_dim = q.shape
    group = heads // k.shape[1]
    for b, head in ((b, head) for b in range(batch) for head in range(heads)):
        keys, values = k[b, head // group].double(), v[b, head // group].double()
        for first in range(0, length, block):
            rows = q[b, head, first : first + block].double()
            last = first + len(rows)
            scores = rows @ keys[:last].T / head_dim**0.5
            future = torch.ones(scores.shape, dtype=torch.bool, device=q.device).triu(first + 1)
            weights = scores.masked_fill(future, -torch.inf).softmax(-1)
            out[b, head, first:last] = weights @ values[:last]
    return out


def errors(o, want):
    difference = o.double() - want
    return {
        "rms": difference.square().mean().sqrt().item(),
        "max": difference.abs().max().item(),
    }
