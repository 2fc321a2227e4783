/* portable.c - vectors of 16 bytes, which every compiler's baseline has or imitates. */
#define QL_VARIANT portable
#define QL_LANES 4
#define QL_REGISTERS 16
#include "body.inc"
