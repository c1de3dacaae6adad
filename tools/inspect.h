/* SPDX-License-Identifier: Apache-2.0 */
/* inspect.h - what moe-tkg inspect prints. */
#ifndef MOE_INSPECT_H
#define MOE_INSPECT_H

#include "cli_model.h"

typedef struct inspection {
    const char *path;
    double gbps;   /* what memory is read at; 0: not known */
    bool measured; /* gbps is this machine's */
    moe_model *model;
    moe_model_info info;
    moe_layer_info *layer; /* [info.moe_layers] */
} inspection;

/* Opens in->path and describes its layers.  CLI_OK, or the code that it stored in *error. */
int inspect_open(inspection *in, const char *config, cli_error *error);
void inspect_close(inspection *in);

/* Print, and return the exit code. */
int inspect_print(const inspection *in, const cli *c);
int inspect_print_json(const inspection *in, const cli *c);

/* Lists the tensors of a file or folder; prints, and returns the exit code. */
int inspect_tensors(const cli *c, const char *path);

#endif
