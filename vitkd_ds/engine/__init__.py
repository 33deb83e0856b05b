"""DeepSpeed engines of student and teacher, and all communication between ranks.

- `student.py`: ZeRO-2 engine of the student. Start reading here.
- `teacher.py`: frozen teacher, sharded with ZeRO-3, replicated, or sharded in CPU memory.
- `flat.py`: flat parameters, which make ZeRO cheap for models with many small weights.
- `clip.py`, `optimizers/`: gradient clipping and optimizers.
- `state_files.py`: DeepSpeed's files in a checkpoint.
- `ds_config.py`, `compile.py`: settings of DeepSpeed and torch.compile.
- `processes.py`, `ranks.py`: process group, and communication between ranks.
"""

import logging

# DeepSpeed logs this at import on a machine without a GPU; nobody needs to act on it.
logging.getLogger("DeepSpeed").addFilter(
    lambda record: not record.getMessage().startswith("Setting accelerator to CPU")
)
