defmodule Beamr.Host.Clean.AuthTest do
  use Beamr.CleanCase

  @session %{"userId" => 7, "role" => "editor", "permissions" => ["publish", "edit"]}

  defp auth(name, args, result, session \\ @session, opts \\ []) do
    clean(name, args, result, [hosts: [{Beamr.Host.Clean.Auth, session}]] ++ opts)
  end

  test "_auth_get_session is the session as JSON, or nothing" do
    assert {:ok, @session} = Beamr.Host.Clean.JSON.decode(auth("_auth_get_session", [], :string))
    assert auth("_auth_get_session", [], :string, nil) == ""
    assert auth("_auth_get_session", [], :string, fn -> %{role: "a"} end) == ~S|{"role":"a"}|
  end

  test "_auth_require_auth asks for a session" do
    assert auth("_auth_require_auth", [], :i32) == 1
    assert auth("_auth_require_auth", [], :i32, fn -> nil end) == 0
  end

  test "_auth_require_role asks for the role" do
    for form <- [:pair, :pointer] do
      assert auth("_auth_require_role", ["editor"], :i32, @session, form: form) == 1
      assert auth("_auth_require_role", ["admin"], :i32, @session, form: form) == 0
    end

    assert auth("_auth_require_role", ["editor"], :i32, %{role: :editor}) == 1
    assert auth("_auth_require_role", [""], :i32, %{}) == 0
    assert auth("_auth_require_role", [""], :i32, nil) == 0
  end

  test "_auth_can asks for a permission" do
    assert auth("_auth_can", ["publish"], :i32) == 1
    assert auth("_auth_can", ["delete"], :i32) == 0
    assert auth("_auth_can", ["publish"], :i32, %{permissions: [:publish]}) == 1
    assert auth("_auth_can", ["publish"], :i32, nil) == 0
  end

  test "_auth_has_any_role takes JSON, or names with commas" do
    for {roles, has} <- [
          {~S|["admin","editor"]|, 1},
          {~S|["admin"]|, 0},
          {"admin, editor", 1},
          {"editor", 1},
          {"edit", 0},
          {"", 0}
        ] do
      assert auth("_auth_has_any_role", [roles], :i32) == has
    end

    assert auth("_auth_has_any_role", [""], :i32, nil) == 0
  end

  test "the session is a map, nil or a function" do
    assert_raise ArgumentError, fn -> auth("_auth_can", ["x"], :i32, "me") end
  end
end
