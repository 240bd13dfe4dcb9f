"""Start one `lmjax train` on many processes, here or on a cluster.

command.py parses the command line and has the table of targets, job.py is what is to be
trained. A target is a module with FLAGS, its own flags, and `launch(job, flags, *,
dry_run)`, which returns the exit code. local.py starts processes on this machine;
slurm.py submits slurm.sbatch; k8s.py submits the objects of manifest.py, for a machine
of topology.py and the files that experiment_files.py finds; tpu_vm.py uses SSH.
"""
