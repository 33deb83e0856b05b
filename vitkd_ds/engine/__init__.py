"""engine"""

import logging

# Said by DeepSpeed when it is imported on a machine without a GPU, which nobody needs to act on.
logging.getLogger("DeepSpeed").addFilter(
    lambda record: not record.getMessage().startswith("Setting accelerator to CPU")
)
