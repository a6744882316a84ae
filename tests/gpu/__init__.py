# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""Everything that needs a GPU, in one command: ``make gpu``. See docs/gpu.md."""
