"""The second tier: tests that wait for a compiler, a process or a full-width network, run by ``scripts/test.sh --all``.

Each entry names a file, a pattern of test names, and what of the same kind stays in the first tier.
"""

import re

SLOW = (
    # A launcher through bash stays: test_dry_run. Recipes in one process stay: p1, the smallest 224 and 384 ones.
    ("tests/test_scripts.py", r"test_dry_run_of_a_recipe\[wsfvit_(?!p1_224|n_224)"),
    ("tests/test_scripts.py", r"test_dry_run_(on_two_machines|of_a_video_model|of_a_detector)"),
    # Full width stays for P0, P1 and T, and their explicit-DWT variants.
    ("tests/models/test_contract.py", r"test_(full_size_forward|backward_\w+)\[wsfvit_(dwt_)?[nsmb]_"),
    ("tests/models/test_contract.py", r"test_full_size_forward\[wsfvit_(dwt_p2|t_384)"),
    ("tests/models/test_contract.py", r"test_export\[wsfvit_dwt"),
    ("tests/models/test_sizes.py", r"test_forward_and_backward\[.*\(448, 448\)"),
    ("tests/models/test_mwa.py", r"test_other_levels_and_wavelets\[\{'(level': 3|wavelet': 'bior)"),
    ("tests/models/test_wavemix.py", r"test_published_parameters_and_macs\[\d+/16 L[34].*(224|256)\]"),
    ("tests/benchmarks/test_baseline.py", r"test_(gradient_norms|parity\[wsfvit_(?!p1))"),
    # Counting on full networks stays for P0 and T; recounted published rows for P1 and T.
    ("tests/analysis/test_flops.py", r"test_published_rows_agree_with_the_recount\[wsfvit_(?!p1_224|t_224)"),
    ("tests/analysis/test_flops.py", r"test_macs_and_activations_equal_fvcores\[wsfvit_dwt"),
    # Compilers: one graph of each operator stays with the aot_eager backend, inductor and ahead of time are slow.
    ("tests/wavelets/test_triton.py", r"test_every_kernel_compiles"),
    ("tests/wavelets/test_triton.py", r"test_nothing_is_written_beside.*\[size[23]"),
    ("tests/wavelets/test_haar_layout.py", r"test_compile_inductor"),
    ("tests/wavelets/test_haar_layout.py", r"test_compile\w*\[(idwt|i?swt_(zero|\w+_flipped))\]"),
    ("tests/wavelets/test_haar_layout.py", r"test_compile\[iswt_periodic\]|test_compile_dynamic\[swt_periodic\]"),
    # The large maps of the interpreted kernels stay for the half-precision dtypes.
    ("tests/wavelets/test_triton.py", r"test_(dwt_and_idwt|swt_and_its_adjoint)\w+\[size[23]-torch.float(32|64)"),
    ("tests/wavelets/test_filterbank.py", r"test_compile"),
    ("tests/video/test_simvp.py", r"test_compiles_as_one_graph"),
    (
        "tests/models/test_parity_forms.py",
        r"test_(compiled_with_gradients|stem_compiled_to_machine|triton_kernels\[whole)",
    ),
    ("tests/models/test_parity_forms.py", r"test_half_precision_errs.*float16"),
    ("tests/models/test_compile.py", r"test_one_graph_and_one_recompilation"),
    ("tests/utils/test_compiling.py", r"test_gradients_are_those"),
    # Exports: ONNX of P0, WaveMix and WA-CNN stays, and a detector's command.
    ("tests/inference/test_export.py", r"test_other_formats\[aoti|test_fused_copy_is_exported"),
    ("tests/inference/test_export.py", r"test_every_family_becomes_onnx\w+\[(wsfvit_dwt|afno|gfn|sa)"),
    ("tests/detection/test_export.py", r"test_cascade_becomes_onnx"),
    # Fixtures of P1 and T at 224 stay.
    ("tests/models/test_parity.py", r"test_outputs\[wsfvit_(b_256|t_384)"),
    ("tests/detection/test_backbone.py", r"test_published_pyramids\[[sm]-"),
    # One process of each kind stays: a refused variable, a restart, a row of a study.
    ("tests/utils/test_distributed.py", r"test_a_defect_of_one_process"),
    ("tests/benchmarks/test_gpu.py", r"test_every_kind_of_step"),
    # Of each, a smaller relative stays: one process, one family, one program, one layout.
    ("tests/models/test_parity_forms.py", r"test_forms_of_the_explicit_subbands"),
    ("tests/models/test_fuse.py", r"test_the_kernel_of_the_stem_has_the_same_values\[True"),
    ("tests/wavelets/test_wavelet_backend.py", r"test_environment"),
    ("tests/utils/test_distributed.py", r"test_another_number_of_processes"),
    ("tests/inference/test_export.py", r"test_(fixed_batch|every_family\w+\[wavemix)"),
    ("tests/eval/test_validate.py", r"test_fused_copy_has_the_same_figures\[--torchcompile"),
    ("tests/detection/test_parity.py", r"test_detections\[cascade"),
    ("tests/detection/test_flops.py", r"test_published_figures_by_both_rules\[cascade_[sm]"),
    ("tests/benchmarks/test_parts.py", r"test_program"),
    ("tests/benchmarks/test_detection.py", r"test_program"),
    # Two processes stay.
    ("tests/eval/test_validate.py", r"test_seven_images_on_several_processes\[3\]"),
)


def is_slow(nodeid: str) -> bool:
    path, _, name = nodeid.partition("::")
    return any(path == file and re.match(pattern, name) for file, pattern in SLOW)
