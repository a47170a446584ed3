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
    for count <- [0, -1, 65_537] do
      assert crypto("crypto_random_bytes", [i32: count], :string) == ""
    end
  end

  test "passwords are hashed with salt, and verified" do
    hash = crypto("_auth_hash_password", ["sesame"], :string)
    assert hash =~ ~r/\Apbkdf2-sha256-chain\$100\$/
    assert crypto("_auth_hash_password", ["sesame"], :string) != hash

    for form <- [:pair, :pointer] do
      assert crypto("_auth_verify_password", ["sesame", hash], :i32, form: form) == 1
      assert crypto("_auth_verify_password", ["Sesame", hash], :i32, form: form) == 0
    end
  end

  test "known hashes are verified" do
    # PBKDF2-HMAC-SHA-256 of "password" and "salt", once and twice.
    for {iterations, hash} <- [
          {1, "120FB6CFFCF8B32C43E7225256C4F837A86548C92CCC35480805987CB70BE17B"},
          {2, "AE4D0C95AF6B46D32D0ADFF928F06DD02A303F8EF3C251DFD6E2D85A95474C43"}
        ] do
      hash = hash |> Base.decode16!() |> Base.encode64()
      known = "pbkdf2-sha256-chain$#{iterations}$#{Base.encode64("salt")}$#{hash}"
      assert crypto("_auth_verify_password", ["password", known], :i32) == 1
    end

    # And more than are done at once.
    first = :crypto.pbkdf2_hmac(:sha256, "password", "salt", 500, 32)
    hash = :crypto.pbkdf2_hmac(:sha256, "password", "salt" <> first, 100, 32)
    known = "pbkdf2-sha256-chain$600$#{Base.encode64("salt")}$#{Base.encode64(hash)}"
    assert crypto("_auth_verify_password", ["password", known], :i32) == 1
  end

  test "what is no hash verifies nothing" do
    for bad <- [
          "",
          "sesame",
          "pbkdf2-sha256-chain$100$c2FsdA==$",
          "pbkdf2-sha256-chain$0$c2FsdA==$c2FsdA==",
          "pbkdf2-sha256-chain$99999999999$c2FsdA==$c2FsdA==",
          "pbkdf2-sha256-chain$1x$c2FsdA==$c2FsdA==",
          "pbkdf2-sha256-chain$1$?$?"
        ] do
      assert crypto("_auth_verify_password", ["", bad], :i32) == 0
    end
  end

  test "hashing leaves others their turn" do
    test = self()
    hosts = [Beamr.Host.Clean.Crypto]

    # More than there are schedulers, and without end.
    pids =
      for _ <- 1..4 do
        spawn(fn ->
          {wasm, values} = guest("_auth_hash_password", ["sesame"], :string, hosts: hosts)
          send(test, :hashing)
          for _ <- Stream.cycle([:on]), do: Beamr.call(wasm, "f", values, timeout: :infinity)
        end)
      end

    for _ <- pids, do: assert_receive(:hashing, 10_000)

    for _ <- 1..20 do
      spawn(fn -> send(test, :turn) end)
      assert_receive :turn, 1_000
    end

    for pid <- pids, do: kill(pid)
  end

  test "hashing is slow unless it is told otherwise" do
    assert Beamr.Host.Clean.Crypto.init(nil) == 600_000

    for iterations <- [0, -1, 10_000_001, "1"] do
      assert_raise ArgumentError, fn -> Beamr.Host.Clean.Crypto.init(iterations: iterations) end
    end
  end
end
