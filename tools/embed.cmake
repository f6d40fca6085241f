# cmake -DIN=FILE -DOUT=FILE.c -DNAME=symbol -P embed.cmake
# A C source that holds the bytes of a file.
file(READ ${IN} hex HEX)
string(REGEX REPLACE "(..)" "0x\\1," bytes "${hex}")
string(REGEX REPLACE "(................................................................................)"
       "\\1\n" bytes "${bytes}")
file(WRITE ${OUT} "#include <stddef.h>
extern const unsigned char ${NAME}[];
extern const size_t ${NAME}_len;
const unsigned char ${NAME}[] = {\n${bytes}\n};
const size_t ${NAME}_len = sizeof ${NAME};
")
