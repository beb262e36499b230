"""Who computes attention over a mask: FlexAttention on a GPU, our own operator on a CPU.

Begin with flex.py, the one file that calls torch's FlexAttention; cpu.py is the CPU's.
"""
