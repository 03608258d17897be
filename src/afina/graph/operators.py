"""Which operators a saved network may call: those that compute, and nothing else.

A file names its operators, and torch looks such a name up under the whole of `torch`: `torch.hub.load` downloads
and runs code, `aten.from_file` makes and maps files. So the names are not screened for known dangers; they have to
be on a list. An operator passes when

1. it is arithmetic on sizes (`_operator.add`, `math.ceil`, `torch.sym_max`), by name; or
2. it is one of the quantization operators that this library writes, or runs a part of the graph, whose operators
   have to pass as well (`torch.cond`), by name; or
3. it is an ATen operator named in `_ATEN` (with or without the `_` of the in-place form) *and* the overload's schema
   takes and gives nothing but tensors, numbers and devices. A string is allowed only in a parameter that chooses
   between ways to compute (`mode`, `rounding_mode`, ...): none of these names a file.

The list is closed: what is not named is refused, so that an operator of a future torch is first read by somebody.
Left out on purpose, though they take only tensors and numbers: what sets or resizes the memory of a tensor (`set_`,
`resize_`), makes tensors from indices that are not checked (`_sparse_coo_tensor_unsafe`), writes into a tensor of the
caller's choice (`out=`), changes the state of the process (`manual_seed`), or is an inner kernel, which trusts its
arguments (`_reshape_alias`, `_weight_int4pack_mm`). The rule says what an operator is for; it cannot say
that torch's implementation of it is free of faults, or that a network does not ask for more memory than there is.
"""

from functools import cache

import torch

_SIZES = frozenset(
    [f"_operator.{name}" for name in "eq ne lt le gt ge neg pos add sub mul floordiv truediv mod pow and_ or_".split()]
    + [f"_operator.{name}" for name in "not_ xor abs getitem index lshift rshift".split()]
    + [f"math.{name}" for name in "trunc ceil floor sqrt".split()]
    + [f"torch.sym_{name}" for name in "not int float ite max min sqrt sum".split()]
    + [f"torch._sym_{name}" for name in "sqrt log2".split()]
)
_OTHERS = frozenset(
    f"torch.ops.{name}"
    for name in (
        "quantized_decomposed.quantize_per_tensor.default",
        "quantized_decomposed.dequantize_per_tensor.default",
        "quantized_decomposed.dequantize_per_channel.default",
        *(f"higher_order.{name}" for name in "cond while_loop scan map_impl wrap_with_set_grad_enabled".split()),
    )
)
_ELEMENTWISE = """
    abs absolute acos acosh add addcdiv addcmul angle arccos arccosh arcsin arcsinh arctan arctan2 arctanh asin asinh
    atan atan2 atanh bitwise_and bitwise_left_shift bitwise_not bitwise_or bitwise_right_shift bitwise_xor ceil celu
    clamp clamp_max clamp_min clip complex conj conj_physical _conj copysign cos cosh deg2rad digamma div divide elu eq
    erf erfc erfinv exp exp2 expm1 fix float_power floor floor_divide fmax fmin fmod frac gelu ge glu greater
    greater_equal gt hardshrink hardsigmoid hardswish hardtanh heaviside hypot i0 igamma igammac imag isclose isfinite
    isinf isnan isneginf isposinf isreal ldexp le leaky_relu lerp less less_equal lgamma log log10 log1p log2
    log_sigmoid logaddexp logaddexp2 logical_and logical_not logical_or logical_xor logit lt maximum minimum mish mul
    multiply nan_to_num ne neg negative nextafter not_equal polar positive pow prelu rad2deg real reciprocal relu relu6
    remainder resolve_conj resolve_neg round rrelu rsqrt rsub selu sgn sigmoid sign signbit silu sin sinc sinh softplus
    softshrink sqrt square sub subtract tan tanh threshold true_divide trunc where xlogy
    special_digamma special_entr special_erf special_erfc special_erfcx special_erfinv special_exp2 special_expit
    special_expm1 special_gammainc special_gammaincc special_gammaln special_i0 special_i0e special_i1 special_i1e
    special_log1p special_logit special_ndtr special_ndtri special_round special_sinc special_xlogy
    __and__ __or__ __xor__ __lshift__ __rshift__
"""
_REDUCTIONS = """
    all amax amin aminmax any argmax argmin bincount count_nonzero cosine_similarity cummax cummin cumprod cumsum diff
    dist equal _euclidean_dist frobenius_norm histc kthvalue logcumsumexp logsumexp max mean median min mode msort
    nanmean nanmedian nanquantile nansum norm pairwise_distance prod quantile renorm sort argsort std std_mean sum
    sum_to_size topk var var_mean cdist pdist special_logsumexp unique_consecutive unique_dim
    linalg_norm linalg_vector_norm linalg_matrix_norm trapezoid norm_except_dim
"""
_SHAPES = """
    adjoint alias as_strided atleast_1d atleast_2d atleast_3d block_diag broadcast_tensors broadcast_to cat
    channel_shuffle chunk clone col2im column_stack concat concatenate constant_pad_nd contiguous diag diag_embed
    diagflat diagonal dsplit dstack expand expand_as flatten flip fliplr flipud hsplit hstack im2col mH mT matrix_H
    meshgrid moveaxis movedim narrow native_channel_shuffle numpy_T pad permute pixel_shuffle pixel_unshuffle ravel
    reflection_pad1d reflection_pad2d reflection_pad3d repeat repeat_interleave replication_pad1d replication_pad2d
    replication_pad3d reshape reshape_as roll rot90 select slice split split_with_sizes squeeze stack swapaxes swapdims
    t tensor_split tile transpose tril triu unbind unflatten unfold unsafe_chunk unsafe_split unsafe_split_with_sizes
    unsqueeze _unsafe_view view view_as view_as_complex view_as_real view_copy vsplit vstack
"""
_INDEXING = """
    bucketize diagonal_scatter embedding fill fill_diagonal copy gather index index_add index_copy index_fill index_put
    index_reduce index_select masked_fill masked_scatter masked_select narrow_copy nonzero nonzero_static one_hot put
    scatter scatter_add scatter_reduce searchsorted select_scatter slice_scatter take take_along_dim zero
    embedding_bag isin argwhere
"""
_LAYERS = """
    conv1d conv2d conv3d convolution _convolution conv_transpose1d conv_transpose2d conv_transpose3d linear bilinear
    batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training native_batch_norm group_norm
    native_group_norm instance_norm layer_norm native_layer_norm rms_norm _fused_rms_norm
    _weight_norm _weight_norm_interface lstm gru rnn_tanh rnn_relu lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell
    softmax _softmax log_softmax _log_softmax special_softmax special_log_softmax scaled_dot_product_attention
    adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d _adaptive_avg_pool2d _adaptive_avg_pool3d
    adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d avg_pool1d avg_pool2d avg_pool3d max_pool1d max_pool2d
    max_pool3d max_pool1d_with_indices max_pool2d_with_indices max_pool3d_with_indices max_unpool2d max_unpool3d
    fractional_max_pool2d fractional_max_pool3d
    upsample_nearest1d upsample_nearest2d upsample_nearest3d _upsample_nearest_exact1d _upsample_nearest_exact2d
    _upsample_nearest_exact3d upsample_linear1d upsample_bilinear2d _upsample_bilinear2d_aa upsample_bicubic2d
    _upsample_bicubic2d_aa upsample_trilinear3d grid_sampler grid_sampler_2d grid_sampler_3d affine_grid_generator
    fake_quantize_per_tensor_affine fake_quantize_per_channel_affine
"""
_PRODUCTS = """
    addbmm addmm addmv addr baddbmm bmm chain_matmul cross det dot einsum ger inner inverse kron logdet matmul
    matrix_exp matrix_power mm mv outer pinverse slogdet tensordot trace vander vdot
    linalg_cholesky linalg_cholesky_ex linalg_cross linalg_det linalg_diagonal linalg_eigh linalg_eigvalsh linalg_inv
    linalg_inv_ex linalg_matmul linalg_matrix_exp linalg_matrix_power linalg_multi_dot linalg_pinv linalg_qr
    linalg_slogdet linalg_solve linalg_solve_ex linalg_solve_triangular linalg_svd linalg_svdvals linalg_vecdot

    fft_fft fft_fft2 fft_fftfreq fft_fftn fft_fftshift fft_hfft fft_ifft fft_ifft2 fft_ifftn fft_ifftshift fft_ihfft
    fft_irfft fft_irfft2 fft_irfftn fft_rfft fft_rfft2 fft_rfftfreq fft_rfftn stft istft
    bartlett_window blackman_window hamming_window hann_window kaiser_window
"""
_CREATION = """
    arange empty empty_like empty_strided empty_permuted eye full full_like linspace logspace new_empty
    new_empty_strided new_full new_ones new_zeros ones ones_like scalar_tensor tril_indices triu_indices zeros
    zeros_like lift_fresh lift_fresh_copy detach detach_copy to _to_copy type_as complex view_as_real_copy
    bernoulli cauchy dropout alpha_dropout feature_dropout feature_alpha_dropout native_dropout exponential geometric
    log_normal multinomial normal normal_functional poisson rand rand_like randint randint_like randn randn_like
    randperm random uniform
"""
_SIZES_OF_TENSORS = """
    sym_size sym_stride sym_numel sym_storage_offset sym_is_contiguous size item _local_scalar_dense
    sym_constrain_range sym_constrain_range_for_size _assert_tensor_metadata _assert_scalar _assert_async
"""
_ATEN = frozenset(
    name
    for names in (_ELEMENTWISE, _REDUCTIONS, _SHAPES, _INDEXING, _LAYERS, _PRODUCTS, _CREATION, _SIZES_OF_TENSORS)
    for name in names.split()
)
# Parameters in which a string chooses between ways to compute, or is shown in an error.
_WORDS = frozenset(
    "approximate assert_msg driver equation indexing interpolation mode norm ord pad_mode padding reduce rounding_mode "
    "side UPLO".split()
)
_PLAIN_TYPES = frozenset("Tensor number int float bool complex Device Generator".split())


@cache
def computes(target: str) -> bool:
    """Whether the operator of that name, as a saved graph spells it, only computes (by this module's rule).

    Example:
        >>> computes("torch.ops.aten.conv2d.default"), computes("torch.ops.aten.from_file.default")
        (True, False)
        >>> computes("torch.hub.load")
        False
    """
    if target in _SIZES or target in _OTHERS:
        return True
    parts = target.split(".")
    if len(parts) != 5 or parts[:3] != ["torch", "ops", "aten"]:
        return False
    name, overload = parts[3:]
    if name not in _ATEN and name.removesuffix("_") not in _ATEN:
        return False
    try:
        schema = getattr(getattr(torch.ops.aten, name), overload)._schema
    except AttributeError:  # not an operator of this version of torch
        return False
    takes = all(not argument.is_out and _is_plain(str(argument.type), argument.name) for argument in schema.arguments)
    return takes and all(_is_plain(str(result.type)) for result in schema.returns)


def _is_plain(kind: str, name: str = "") -> bool:
    """Whether a parameter or result holds only tensors and numbers; `Optional` and `List` of these do as well."""
    for wrapper in ("Optional[", "List[", "Optional["):
        if kind.startswith(wrapper) and kind.endswith("]"):
            kind = kind.removeprefix(wrapper)[:-1]
    return kind in _PLAIN_TYPES or (kind == "str" and name in _WORDS)
