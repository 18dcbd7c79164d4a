"""An FP8 KV cache in Triton: what a step writes is quantised, and attention reads the codes.

E4M3 is made of integers and shifts, so that the kernels run on GPUs without FP8 units (an A100) and
in the interpreter. The oracle is `inferlab.engine.fp8`, code for code. Mirrors
vLLM's `reshape_and_cache_flash`, which a step calls before attention, and
`gather_and_maybe_dequant_cache`.
"""

import torch
import triton
import triton.language as tl


@triton.jit
def encode_e4m3(x):
    """Codes (uint8) of the E4M3 numbers nearest to float32 `x`, ties to even.

    Too large becomes 448, infinity included; NaN stays NaN.
    """
    bits = x.to(tl.int32, bitcast=True)
    magnitude = bits & 0x7FFFFFFF
    clipped = tl.minimum(magnitude, 0x43E00000)  # the bits of 448
    # Normal numbers lose 20 of 23 bits of mantissa; their exponent is counted from 7, not from 127.
    odd = (clipped >> 20) & 1
    normal = ((clipped + 0x7FFFF + odd) >> 20) - (120 << 3)
    # Subnormal ones count units of 2**-9, which are the last bits of the mantissa beside 2**14.
    beside = clipped.to(tl.float32, bitcast=True) + 16384.0
    subnormal = beside.to(tl.int32, bitcast=True) & 15
    code = tl.where(clipped < 0x3C800000, subnormal, normal)  # the bits of 2**-6
    code = tl.where(magnitude > 0x7F800000, 127, code)
    return (code | ((bits >> 24) & 128)).to(tl.uint8)


@triton.jit
def decode_e4m3(codes):
    """float32 numbers that `codes` (uint8) stand for."""
    wide = codes.to(tl.int32)
    exponent, mantissa = (wide >> 3) & 15, wide & 7
    units = tl.where(exponent > 0, mantissa + 8, mantissa).to(tl.float32)
    # A unit is 2**(exponent - 10); subnormal numbers have that of the smallest normal ones.
    unit = ((tl.maximum(exponent, 1) + 117) << 23).to(tl.float32, bitcast=True)
    magnitude = tl.where((wide & 127) == 127, float("nan"), units * unit)
    return tl.where(wide > 127, -magnitude, magnitude)


@triton.jit
def fp8_write_kernel(
    kv,  # [num_tokens, num_kv_heads, HEAD_DIM], keys or values
    slots,  # [num_tokens]; below 0 is padding
    scales,  # [num_kv_heads]
    cache,  # [num_slots, num_kv_heads, HEAD_DIM] codes
    HEAD_DIM: tl.constexpr,
):
    """Quantise K or V into its slots: program (t, h) writes head h of token t."""
    token, head = tl.program_id(0), tl.program_id(1)
    num_kv_heads = tl.num_programs(1)
    dims = tl.arange(0, HEAD_DIM)
    row = (token * num_kv_heads + head) * HEAD_DIM
    numbers = tl.load(kv + row + dims).to(tl.float32)
    scale = tl.load(scales + head) + tl.zeros_like(numbers)
    slot = tl.load(slots + token).to(tl.int64)
    place = (slot * num_kv_heads + head) * HEAD_DIM
    is_token = slot + tl.zeros_like(dims) >= 0
    codes = encode_e4m3(tl.div_rn(numbers, scale))
    tl.store(cache + place + dims, codes, mask=is_token)


@triton.jit
def fp8_read_kernel(
    cache,  # [num_slots, num_kv_heads, HEAD_DIM] codes
    slots,  # [num_tokens]; below 0 is padding
    scales,  # [num_kv_heads]
    output,  # [num_tokens, num_kv_heads, HEAD_DIM]
    HEAD_DIM: tl.constexpr,
):
    """Gather and dequantise: program (t, h) reads head h of slot t; padding becomes zeros."""
    token, head = tl.program_id(0), tl.program_id(1)
    num_kv_heads = tl.num_programs(1)
    dims = tl.arange(0, HEAD_DIM)
    slot = tl.load(slots + token).to(tl.int64)
    place = (slot * num_kv_heads + head) * HEAD_DIM
    is_token = slot + tl.zeros_like(dims) >= 0
    codes = tl.load(cache + place + dims, mask=is_token, other=0)
    numbers = decode_e4m3(codes) * tl.load(scales + head)
    tl.store(output + (token * num_kv_heads + head) * HEAD_DIM + dims, numbers)


@triton.jit
def fp8_decode_kernel(
    queries,  # [num_sequences, num_heads, HEAD_DIM]
    key_codes,  # [num_blocks, BLOCK_SIZE, num_kv_heads, HEAD_DIM]
    value_codes,  # like key_codes
    key_scales,  # [num_kv_heads]
    value_scales,  # [num_kv_heads]
    block_tables,  # [num_sequences, max_blocks]
    sequence_lengths,  # [num_sequences]
    output,  # like queries
    scale,
    max_blocks,
    HEADS_PER_GROUP: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
):
    """Attend with one query, as `paged_decode_kernel` does: program (s, h) owns head h.

    A head's scale is the same for all its keys, so it is taken out of the sums: that of the keys
    goes into the query, that of the values onto the result.
    """
    sequence, head = tl.program_id(0), tl.program_id(1)
    num_heads = tl.num_programs(1)
    kv_head = head // HEADS_PER_GROUP
    num_kv_heads = num_heads // HEADS_PER_GROUP
    dims = tl.arange(0, HEAD_DIM)
    offsets = tl.arange(0, BLOCK_SIZE)
    row = (sequence * num_heads + head) * HEAD_DIM
    key_scale = tl.load(key_scales + kv_head)
    query = tl.load(queries + row + dims).to(tl.float32) * (scale * key_scale)
    length = tl.load(sequence_lengths + sequence)

    maximum = -float("inf")
    total = 0.0
    weighted = tl.zeros([HEAD_DIM], dtype=tl.float32)
    for i in range(tl.cdiv(length, BLOCK_SIZE)):
        block = tl.load(block_tables + sequence * max_blocks + i).to(tl.int64)
        valid = i * BLOCK_SIZE + offsets < length
        rows = ((block * BLOCK_SIZE + offsets) * num_kv_heads + kv_head) * HEAD_DIM
        places = rows[:, None] + dims[None, :]
        keys = decode_e4m3(tl.load(key_codes + places, mask=valid[:, None], other=0))
        values = decode_e4m3(tl.load(value_codes + places, mask=valid[:, None], other=0))
        scores = tl.where(valid, tl.sum(query[None, :] * keys, axis=1), -float("inf"))
        new_maximum = tl.maximum(maximum, tl.max(scores, axis=0))
        correction = tl.exp(maximum - new_maximum)
        weights = tl.exp(scores - new_maximum)
        total = total * correction + tl.sum(weights, axis=0)
        weighted = weighted * correction + tl.sum(weights[:, None] * values, axis=0)
        maximum = new_maximum
    tl.store(output + row + dims, weighted / total * tl.load(value_scales + kv_head))


def fp8_write(
    kv: torch.Tensor, slots: torch.Tensor, scales: torch.Tensor, cache: torch.Tensor
) -> None:
    """Quantise keys or values into the slots of a cache of codes.

    Args:
        kv: `[num_tokens, num_kv_heads, head_dim]`, contiguous; `head_dim` a power of two.
        slots: `[num_tokens]` int32, block times block size plus offset; below 0 is padding.
        scales: `[num_kv_heads]` float32, above 0: a code stands for its number times the scale.
        cache: `[num_blocks, block_size, num_kv_heads, head_dim]` uint8, contiguous; written to.
    """
    num_tokens, num_kv_heads, head_dim = kv.shape
    fp8_write_kernel[(num_tokens, num_kv_heads)](kv, slots, scales, cache, HEAD_DIM=head_dim)


def fp8_read(cache: torch.Tensor, slots: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """The keys or values of some slots, `[num_tokens, num_kv_heads, head_dim]` float32.

    Args: as `fp8_write`; slots below 0 give zeros.
    """
    num_kv_heads, head_dim = cache.shape[2:]
    output = torch.empty((len(slots), num_kv_heads, head_dim), device=cache.device)
    fp8_read_kernel[(len(slots), num_kv_heads)](cache, slots, scales, output, HEAD_DIM=head_dim)
    return output


def fp8_decode(
    queries: torch.Tensor,
    key_codes: torch.Tensor,
    value_codes: torch.Tensor,
    key_scales: torch.Tensor,
    value_scales: torch.Tensor,
    block_tables: torch.Tensor,
    sequence_lengths: torch.Tensor,
) -> torch.Tensor:
    """Paged decode attention over codes.

    Args:
        queries: `[num_sequences, num_heads, head_dim]`, contiguous; `head_dim` a power of two.
        key_codes: `[num_blocks, block_size, num_kv_heads, head_dim]` uint8, contiguous;
            `block_size` a power of two. `value_codes` likewise.
        key_scales: `[num_kv_heads]` float32. `value_scales` likewise.
        block_tables: `[num_sequences, max_blocks]` int32.
        sequence_lengths: `[num_sequences]` int32, at least 1 each.

    Returns:
        `[num_sequences, num_heads, head_dim]` in the dtype of `queries`.
    """
    num_sequences, num_heads, head_dim = queries.shape
    block_size, num_kv_heads = key_codes.shape[1:3]
    output = torch.empty_like(queries)
    fp8_decode_kernel[(num_sequences, num_heads)](
        queries,
        key_codes,
        value_codes,
        key_scales,
        value_scales,
        block_tables,
        sequence_lengths,
        output,
        head_dim**-0.5,
        block_tables.shape[1],
        HEADS_PER_GROUP=num_heads // num_kv_heads,
        BLOCK_SIZE=block_size,
        HEAD_DIM=head_dim,
    )
    return output
