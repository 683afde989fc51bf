// Bytes of a saved state: magic, version, hashes, payload, checksum; little-endian on every machine.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace pit {

// FNV-1a, 64 bits. Each step is a bijection of the hash, so two strings that differ in one byte never agree.
class Fingerprint {
  public:
    Fingerprint& bytes(std::string_view text);
    Fingerprint& number(std::uint64_t value);
    std::uint64_t value() const { return value_; }

  private:
    std::uint64_t value_ = 0xCBF29CE484222325u;
};

// Writes a state; `magic` is 8 characters.
class StateWriter {
  public:
    StateWriter(std::string_view magic, std::uint32_t version);
    void number(std::uint64_t value);
    void byte(std::uint8_t value);
    // Returns the bytes with their checksum; the writer cannot be used afterwards.
    std::string finish();

  private:
    std::string bytes_;
};

// Reads a state back; the constructor checks magic, checksum and version, so that any damage is an Error before a
// field is looked at. `what` names the state's owner in messages.
class StateReader {
  public:
    StateReader(std::string_view bytes, std::string_view magic, std::uint32_t version, std::string what);
    std::uint64_t number();
    std::uint8_t byte();
    // Reads a number of items of at least `item_bytes` each; Error, before any allocation, if so many cannot follow.
    std::size_t count(std::size_t item_bytes);
    // Error unless every byte was read.
    void finish() const;
    // Error unless the next number is `expected`; `name` is its name in the message.
    void expect(std::uint64_t expected, const std::string& name, const std::string& remedy);

  private:
    void need(std::size_t count) const;

    std::string_view payload_;
    std::size_t at_ = 0;
    std::string what_;
};

}  // namespace pit
