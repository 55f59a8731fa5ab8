#pragma once
#include "simt_half.h"
