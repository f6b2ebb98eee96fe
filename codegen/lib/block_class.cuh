// Classes of key blocks under a mask function, and the values of the dense keep map (where 0 is "dropped").

[[maybe_unused]] constexpr unsigned char EMPTY = 0;    // no element is kept
[[maybe_unused]] constexpr unsigned char PARTIAL = 1;  // the mask decides element by element
[[maybe_unused]] constexpr unsigned char FULL = 2;     // every element is kept
