defmodule Beamr.Host.Clean.CryptoTest do
  use Beamr.CleanCase

  @hosts [{Beamr.Host.Clean.Crypto, iterations: 100}]

  defp crypto(name, args, result, opts \\ []),
    do: clean(name, args, result, [hosts: @hosts] ++ opts)

  test "crypto_sha256 is lowercase hex, in both forms" do
    for form <- [:pair, :pointer] do
      assert crypto("crypto_sha256", ["abc"], :string, form: form) ==
               "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    end

    assert crypto("crypto_sha256", [""], :string) =~ ~r/\Ae3b0c442/
  end

  test "crypto_random_bytes is lowercase hex, and random" do
    one = crypto("crypto_random_bytes", [i32: 16], :string)
    assert one =~ ~r/\A[0-9a-f]{32}\z/
    assert crypto("crypto_random_bytes", [i32: 16], :string) != one
  end

  test "crypto_random_bytes of none, fewer or too many is empty" do
    for count <- [0, -1, 1_048_577] do
      assert crypto("crypto_random_bytes", [i32: count], :string) == ""
    end
  end

  test "passwords are hashed with salt, and verified" do
    hash = crypto("_auth_hash_password", ["sesame"], :string)
    assert hash =~ ~r/\Apbkdf2-sha256\$100\$/
    assert crypto("_auth_hash_password", ["sesame"], :string) != hash

    for form <- [:pair, :pointer] do
      assert crypto("_auth_verify_password", ["sesame", hash], :i32, form: form) == 1
      assert crypto("_auth_verify_password", ["Sesame", hash], :i32, form: form) == 0
    end
  end

  test "a known hash is verified" do
    # PBKDF2-HMAC-SHA-256 of "password" and "salt", 4096 times.
    hash =
      Base.encode64(
        Base.decode16!("C5E478D59288C841AA530DB6845C4C8D962893A001CE4E11A4963873AA98134A")
      )

    known = "pbkdf2-sha256$4096$#{Base.encode64("salt")}$#{hash}"
    assert crypto("_auth_verify_password", ["password", known], :i32) == 1
  end

  test "what is no hash verifies nothing" do
    for bad <- [
          "",
          "sesame",
          "pbkdf2-sha256$100$c2FsdA==$",
          "pbkdf2-sha256$0$c2FsdA==$c2FsdA==",
          "pbkdf2-sha256$99999999999$c2FsdA==$c2FsdA==",
          "pbkdf2-sha256$1x$c2FsdA==$c2FsdA==",
          "pbkdf2-sha256$1$?$?"
        ] do
      assert crypto("_auth_verify_password", ["", bad], :i32) == 0
    end
  end

  test "hashing is slow unless it is told otherwise" do
    assert Beamr.Host.Clean.Crypto.init(nil) == 600_000

    for iterations <- [0, -1, 10_000_001, "1"] do
      assert_raise ArgumentError, fn -> Beamr.Host.Clean.Crypto.init(iterations: iterations) end
    end
  end
end
