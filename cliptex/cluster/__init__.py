"""Running on clusters and GPUs: torchrun launch, GPU detection, planning, environment checks.

In      the configuration, the machine, the scheduler.
Out     child processes, plans (`cliptex plan`) and checks (`cliptex doctor`).
Must not know what a stage computes, only what it needs: jobs, bytes, time, devices.
"""
