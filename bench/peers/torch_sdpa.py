"""What a user of PyTorch gets for the same attention: cuDNN and FlashAttention-2 behind SDPA, and
the machine's ceilings. Reads one JSON question per line, answers each with one JSON line.

The first line says what runs here. A row is prepared (tensors, one CUDA graph per implementation),
measured round by round as often as asked, and dropped by the next `prepare` or `release`. As on the
other side: serial calls in one graph, replayed between two waits; nothing is subtracted.
"""

import json
import os
import sys
import time

# Libraries print where they like; only answers may reach the pipe.
answers = os.fdopen(os.dup(1), "w", buffering=1)
os.dup2(2, 1)


def answer(**fields):
    answers.write(json.dumps(fields) + "\n")


def first_line(error):
    return (str(error) or type(error).__name__).splitlines()[0]


try:
    import precision
    import torch
    import torch.nn.functional as F
    from torch.nn.attention import SDPBackend, sdpa_kernel

    if not torch.cuda.is_available():
        raise RuntimeError("PyTorch has no CUDA here")
except Exception as error:
    answer(error=first_line(error))
    sys.exit(0)

IMPLEMENTATIONS = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "fa2": SDPBackend.FLASH_ATTENTION,
}
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
PRODUCT_SIDE = 8192


def seconds_of(runs, replay):
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(runs):
        replay()
    torch.cuda.synchronize()
    return time.perf_counter() - start


class Timed:
    """`calls` serial calls in one graph; a round replays it for at least `least` seconds, and where it
    `settles` as long untimed first: when a turn begins, the clock is the one that the turn before has left."""

    def __init__(self, call, calls, least, settles=True):
        for i in range(min(calls, 3)):
            call(i)
        torch.cuda.synchronize()
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            for i in range(calls):
                call(i)
        self.call = call  # keeps the tensors that the graph reads
        self.calls = calls
        self.settles = settles
        self.runs = 1
        seconds_of(1, self.graph.replay)
        while (elapsed := seconds_of(self.runs, self.graph.replay)) < least:
            wanted = int(1.2 * least * self.runs / max(elapsed, 1e-6)) + 1
            self.runs = max(self.runs + 1, min(wanted, 10 * self.runs))

    def microseconds(self):
        if self.settles:
            seconds_of(self.runs, self.graph.replay)
        return seconds_of(self.runs, self.graph.replay) * 1e6 / (self.runs * self.calls)


def row_call(params, copies):
    """[batch, heads, length, head_dim], contiguous: the layout that SDPA takes without a copy."""
    batch, q_heads, kv_heads = params["batch"], params["numQHeads"], params["numKvHeads"]
    head_dim, dtype = params["headDim"], DTYPES[params["dtype"]]
    kv_len = params.get("kvLen", params.get("seqLen"))
    q_len = 1 if "kvLen" in params else kv_len
    random = lambda heads, rows: torch.randn(  # noqa: E731
        batch, heads, rows, head_dim, device="cuda", dtype=dtype
    )
    q = random(q_heads, q_len)
    keys = [random(kv_heads, kv_len) for _ in range(copies)]
    values = [random(kv_heads, kv_len) for _ in range(copies)]
    options = {"is_causal": q_len > 1, "enable_gqa": q_heads != kv_heads}

    def call(i):
        return F.scaled_dot_product_attention(q, keys[i % copies], values[i % copies], **options)

    return call


def timed_product(dtype, least):
    x = torch.randn(PRODUCT_SIDE, PRODUCT_SIDE, device="cuda", dtype=dtype)
    y = torch.randn_like(x)
    return Timed(lambda _: x @ y, 8, least)


def prepare(question):
    timed, failed = {}, {}
    try:
        if question["product"]:
            dtype = DTYPES[question["params"]["dtype"]]
            timed["product"] = timed_product(dtype, question["seconds"])
        if not question["attention"]:
            return timed, failed
        call = row_call(question["params"], question["copies"])
    except Exception as error:  # no room for the tensors: the other side goes on alone
        return timed, {"peers": first_line(error)}
    for name, backend in IMPLEMENTATIONS.items():
        try:
            with sdpa_kernel([backend]):
                calls, seconds = question["calls"], question["seconds"]
                timed[name] = Timed(call, calls, seconds, settles=question["product"])
        except Exception as error:
            failed[name] = first_line(error)
            torch.cuda.synchronize()
    return timed, failed


def ceilings():
    """The read rate of a sum over 4 GiB, and a large bf16 product."""
    values = torch.randn(1 << 30, device="cuda")
    read = Timed(lambda _: values.sum(), 8, 0.02)
    product = timed_product(torch.bfloat16, 0.02)
    median = lambda timed: sorted(timed.microseconds() for _ in range(5))[2]  # noqa: E731
    return {
        "readGbps": values.numel() * 4 / median(read) / 1e3,
        "bfloat16": 2 * PRODUCT_SIDE**3 / median(product) / 1e6,
    }


def errors_of_outputs(params, folder):
    """How far the other side's output, and the peers' own on the same inputs, are from float64."""
    dtype = DTYPES[params["dtype"]]
    tensor = lambda name: precision.load(folder, name, params, dtype).cuda()  # noqa: E731
    q, k, v = (tensor(name) for name in "qkv")
    want = precision.reference(q, k, v)
    errors, failed = {"flash-gqa": precision.errors(tensor("o"), want)}, {}
    for name, backend in IMPLEMENTATIONS.items():
        try:
            with sdpa_kernel([backend]):
                o = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
            errors[name] = precision.errors(o, want)
        except Exception as error:
            failed[name] = first_line(error)
    return errors, failed


def main():
    answer(
        gpu=torch.cuda.get_device_name(),
        torch=torch.__version__,
        cuda=torch.version.cuda,
        cudnn=str(torch.backends.cudnn.version()),
    )
    timed = {}
    for line in sys.stdin:
        question = json.loads(line)
        try:
            if question["do"] == "measure":
                answer(us=timed[question["impl"]].microseconds())
                continue
            timed.clear()
            torch.cuda.empty_cache()
            if question["do"] == "prepare":
                timed, failed = prepare(question)
                answer(impls=list(timed), failed=failed)
            elif question["do"] == "ceilings":
                answer(**ceilings())
            elif question["do"] == "precision":
                errors, failed = errors_of_outputs(question["params"], question["folder"])
                answer(errors=errors, failed=failed)
            else:
                answer()
        except Exception as error:
            answer(error=first_line(error))


main()
