/* SPDX-License-Identifier: Apache-2.0 */
/* experts_version.h - of which layout packed experts are, in memory and in files. */
#ifndef MOE_EXPERTS_VERSION_H
#define MOE_EXPERTS_VERSION_H

/* Of all that experts.h, pack.h and kernel.h say of packed experts. */
#define EXPERTS_VERSION 2u

/* docs/numerics.md, which says in which order k is packed. */
#define EXPERTS_CANON 1u

#endif
