"""MindSpore's Ascend back end where there is neither an NPU nor CANN: what it compiles, launches and allocates."""
