// Generated sources include it; there is nothing here that they use and cuda_builtins.h has not.
#pragma once
